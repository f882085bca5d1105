"""The digits: what is in them, that nothing is in both splits, and what its errors say."""

from __future__ import annotations

import pytest
import torch

from fewstep.data import DATASETS, SPLITS, Dataset, Digits, open_dataset
from fewstep.errors import DataError


def everything(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    data = Digits(split)
    return data.batch(torch.arange(len(data)))


def test_splits_are_disjoint_and_cover() -> None:
    train, held_out = Digits("train"), Digits("held-out")
    assert (len(train), len(held_out)) == (1497, 300)
    places = torch.cat([train.places, held_out.places])
    assert places.sort().values.tolist() == list(range(1797))


def test_no_image_is_in_both_splits() -> None:
    train, held_out = ({row.numpy().tobytes() for row in everything(s)[0]} for s in SPLITS)
    assert not train & held_out


def test_held_out_has_30_of_each_class_from_every_part_of_the_file() -> None:
    held_out = Digits("held-out")
    assert everything("held-out")[1].bincount().tolist() == [30] * 10
    # Writers follow each other, so each sixth of the file must give about a sixth.
    sixths = (held_out.places * 6 // 1797).bincount()
    assert int(sixths.min()) > 35
    assert int(sixths.max()) < 65


@pytest.mark.parametrize("split", SPLITS)
def test_examples_are_those_of_scikit_learn(split: str) -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    data = Digits(split)
    x, labels = everything(split)
    assert x.shape == (len(data), *data.shape)
    assert x.dtype == torch.float32
    assert labels.dtype == torch.int64
    source = data.places.numpy()
    assert torch.equal(((x[:, 0] + 1) * 8).double(), torch.from_numpy(bunch.images[source]))
    assert torch.equal(labels, torch.from_numpy(bunch.target[source]).long())
    assert (float(x.min()), float(x.max())) == (-1.0, 1.0)


def test_batch_takes_any_order_and_repeats() -> None:
    x, labels = everything("train")
    index = torch.tensor([5, 1496, 0, 5])
    got, got_labels = Digits("train").batch(index)
    assert torch.equal(got, x[index])
    assert torch.equal(got_labels, labels[index])


def test_a_batch_is_a_copy() -> None:
    data = Digits("train")
    x, labels = data.batch(torch.arange(4))
    before = x.clone()
    x.zero_()
    labels.zero_()
    assert torch.equal(data.batch(torch.arange(4))[0], before)


def test_content_hash_names_the_split_and_stays() -> None:
    hashes = [Digits(s).content_hash() for s in ("train", "held-out", "train")]
    assert hashes[0] == hashes[2] != hashes[1]
    # A change here moves images between the splits: every published figure changes with it.
    assert hashes[0].startswith(TRAIN_HASH)


TRAIN_HASH = "4038018bdcfdf3bf"


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (torch.tensor([0, 300]), "examples 0 to 299"),
        (torch.tensor([-1]), "examples 0 to 299"),
        (torch.tensor([0.0]), "whole numbers"),
        (torch.tensor(3), "shape \\(B,\\)"),
        (torch.ones(300, dtype=torch.bool), "whole numbers"),
    ],
)
def test_a_wrong_index_is_refused(index: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Digits("held-out").batch(index)


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("split", SPLITS)
def test_every_listed_data_set_keeps_the_protocol(name: str, split: str) -> None:
    data: Dataset = open_dataset(name, split)
    assert len(data.class_names) == data.num_classes
    x, cond = data.batch(torch.arange(len(data)))
    assert x.shape == (len(data), *data.shape)
    assert x.dtype == torch.float32
    assert float(x.abs().max()) <= 1
    assert isinstance(cond, torch.Tensor)
    assert cond.unique().tolist() == list(range(data.num_classes))


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("digit", "train", "Did you mean 'digits'"),
        ("cats", "train", "there is digits"),
        ("digits", "held_out", "Did you mean 'held-out'"),
        ("digits", "test", "train and held-out"),
    ],
)
def test_unknown_names_are_explained(name: str, split: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(name, split)
    assert "\n" not in str(caught.value)
