"""Data: records become token examples, streams of them an order, and steps of the order planned batches."""

from jaxpref.data import layouts, order, records, samples, show, sizing, sources, templates, tokenizers
from jaxpref.data.dataset import Dataset, Lengths, load_stream
from jaxpref.data.records import KINDS, Tokenized

__all__ = [
    "KINDS",
    "Dataset",
    "Lengths",
    "Tokenized",
    "layouts",
    "load_stream",
    "order",
    "records",
    "samples",
    "show",
    "sizing",
    "sources",
    "templates",
    "tokenizers",
]
