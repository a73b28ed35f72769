"""Bytes in and out: storage, commits, tars, Parquet and images. No stage logic lives here."""
