"""The studies behind the pages of docs/results and docs/lab: they print tables and draw pictures.

    python -m studies                    list the studies
    python -m studies NAME --help        show the arguments of one

Run them from the root of a clone; they are not part of the installed package. A study is one file
with a function `main(arguments)`, and a line in `STUDIES` of `studies/__main__.py`.
"""
