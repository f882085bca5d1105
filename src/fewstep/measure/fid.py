"""FID by the published protocol: what it takes, and the figures with their protocol in a file.

The published protocol (Heusel et al. 2017, arXiv:1706.08500) compares 50,000 samples with all
images of the data, both as bytes, in the features of the Inception of 2015.
"""

from __future__ import annotations

from pathlib import Path

from fewstep.atomic import write_json
from fewstep.measure.cell import Cells, Row
from fewstep.measure.evaluate import Evaluation
from fewstep.metrics import ScriptedInception

SAMPLES = 50_000
SCRIPTED = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"  # with StyleGAN


def write_fid(evaluation: Evaluation, cells: Cells, name: str) -> Path:
    """Write the FID of cells, with the protocol that they were measured by; return the file."""
    path = evaluation.folder / name
    write_json(path, {"protocol": _protocol(evaluation, cells), "fid": _figures(cells)})
    return path


def _figures(cells: Cells) -> list[Row]:
    keys = ("model", "sampler", "steps", "evaluations", "w", "fid", "kid")
    return [{**{key: cell.row[key] for key in keys}, "key": cell.key} for cell in cells]


def _protocol(evaluation: Evaluation, cells: Cells) -> dict[str, object]:
    reference, records = evaluation.reference, evaluation.results
    first = records.get(next(iter(cells)).key)
    assert evaluation.features_path is not None
    assert first is not None
    departures = []
    if evaluation.samples != SAMPLES:
        departures.append(f"{evaluation.samples:,} samples instead of {SAMPLES:,}")
    features = evaluation.features
    if isinstance(features, ScriptedInception) and features.sha256 != SCRIPTED:
        departures.append("a TorchScript file that is not the published inception-2015-12-05.pt")
    resizing = getattr(features, "resizing", "by the network in the file")
    return {
        "samples": evaluation.samples,
        "seed": evaluation.seed,
        "conditions": f"{first.asked['condition']}, in turn",
        "images": f"rounded to bytes; resized {resizing}",
        "reference": {
            "data": evaluation.data.name,
            "images": reference.count,
            "which": "all images, held-out ones too",
            "shape": list(evaluation.dataset.shape),
            "sha256": evaluation.dataset.content_hash(),
        },
        "features": {
            "file": evaluation.features_path.name,
            "sha256": features.sha256,
        },
        "covariance": "unbiased, float64",
        "kid": "cubic kernel, unbiased, every pair; at most 10,000 images of the reference",
        "departs_from_published": departures,
        "versions": dict(first.versions),
        "device": first.device,
    }
