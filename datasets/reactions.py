"""What happens to a data set when its work on a node has ended. Runs in control."""

from typing import Any

from datasets import actions
from datasets.models import Dataset, DatasetVersion
from organizations import parts
from organizations.models import Organization
from workers.models import Task
from workers.signals import task_ended


def connect() -> None:
    task_ended.connect(_ingest_ended, dispatch_uid="datasets.ingest_ended")
    parts.register(export=_export, purge=_purge)


def _ingest_ended(task: Task, **_: Any) -> None:
    if task.kind == actions.INGEST:
        actions.finish_ingest(task)


def _export(home: Organization, bundle: parts.Bundle) -> None:
    bundle.add_table("datasets", Dataset.objects.of(home))
    versions = DatasetVersion.objects.of(home)
    bundle.add_table("dataset_versions", versions)
    for version in versions.select_related("data", "rejects").defer("columns").iterator(100):
        folder = f"datasets/{version.dataset_id}/v{version.number}"
        if version.data is not None:
            bundle.add_file(f"{folder}.parquet", version.data.file.name)
        if version.rejects is not None:
            bundle.add_file(f"{folder}-rejects.csv", version.rejects.file.name)


def _purge(home: Organization) -> None:
    Dataset.objects.of(home).update(latest=None)
    DatasetVersion.objects.of(home).delete()
    Dataset.objects.of(home).delete()
