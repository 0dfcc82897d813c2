"""What people and nodes do with data sets."""
INGEST = "dataset.ingest"


def finish_ingest(task): ...
