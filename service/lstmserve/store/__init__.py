"""Owns the stores: where sessions outlive the process. Knows no engine, no transport, no log."""

from lstmserve.store.record import CorruptRecord, Record, Version, decode, encode, version_of
from lstmserve.store.store import Store, StoreRefused, Write, Written

__all__ = [
    "CorruptRecord",
    "Record",
    "Store",
    "StoreRefused",
    "Version",
    "Write",
    "Written",
    "decode",
    "encode",
    "version_of",
]
