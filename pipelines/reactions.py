"""What pipelines do when an organization is taken along or goes."""

from organizations import parts
from organizations.models import Organization
from pipelines.models import Connection, Pipeline, PipelineVersion, Run, Step


def connect() -> None:
    parts.register(export=_export, purge=_purge)


def _export(home: Organization, bundle: parts.Bundle) -> None:
    kept = ("secrets_sealed", "sealed_names")
    bundle.add_table("connections", Connection.objects.of(home), *kept)
    bundle.add_table("pipelines", Pipeline.objects.of(home))
    versions = PipelineVersion.objects.filter(pipeline__organization=home)
    bundle.add_table("pipeline_versions", versions)
    bundle.add_table("pipeline_runs", Run.objects.of(home))
    steps = Step.objects.filter(run__organization=home)
    bundle.add_table("pipeline_steps", steps, "inputs_digest")


def _purge(home: Organization) -> None:
    Run.objects.of(home).delete()
    Pipeline.objects.of(home).delete()
    Connection.objects.of(home).delete()
