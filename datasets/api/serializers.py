from typing import Any

from rest_framework import serializers

from accounts.parsers import has_odd_text
from datasets.models import Dataset, DatasetVersion

DTYPES = ("integer", "float", "boolean", "string", "date", "datetime")


class VersionBrief(serializers.ModelSerializer[DatasetVersion]):
    """A version without its columns."""

    has_rejects = serializers.SerializerMethodField()

    class Meta:
        model = DatasetVersion
        fields = (
            "id", "number", "state", "error", "filename", "upload_size", "origin", "source", "rows",
            "column_count", "sha256", "size_bytes", "rejected", "has_rejects", "notices",
            "created_at", "ready_at",
        )  # fmt: skip

    def get_has_rejects(self, version: DatasetVersion) -> bool:
        return version.rejects_id is not None


class DatasetBrief(serializers.ModelSerializer[Dataset]):
    latest = VersionBrief(allow_null=True, read_only=True)

    class Meta:
        model = Dataset
        fields = ("id", "name", "description", "state", "latest", "created_at", "updated_at")


class ColumnField(serializers.JSONField):
    """Name, dtype, role and statistics of one column."""


class DatasetFull(DatasetBrief):
    """With the newest version, ready or not, and the columns of the one that is used."""

    newest = serializers.SerializerMethodField()
    columns = serializers.SerializerMethodField()
    progress = serializers.SerializerMethodField()

    class Meta(DatasetBrief.Meta):
        fields = (*DatasetBrief.Meta.fields, "newest", "columns", "progress")  # type: ignore[assignment]

    def _newest(self, dataset: Dataset) -> DatasetVersion:
        found: DatasetVersion = self.context["newest"]
        return found

    def get_newest(self, dataset: Dataset) -> dict[str, Any]:
        return dict(VersionBrief(self._newest(dataset)).data)

    def get_columns(self, dataset: Dataset) -> list[dict[str, Any]]:
        columns = dataset.latest.columns if dataset.latest else []
        return [{key: column.get(key) for key in ("name", "dtype", "role")} for column in columns]

    def get_progress(self, dataset: Dataset) -> float | None:
        """0 to 1 while the newest version is being read, null otherwise."""
        newest = self._newest(dataset)
        if newest.state != DatasetVersion.State.INGESTING or newest.task is None:
            return None
        return newest.task.progress


DELIMITERS = {
    ",": ",",
    ";": ";",
    "|": "|",
    "\t": "\t",
    "comma": ",",
    "semicolon": ";",
    "tab": "\t",
    "pipe": "|",
}
ENCODINGS = (
    "utf-8",
    "utf-16",
    "utf-16-le",
    "utf-16-be",
    "cp1252",
    "latin-1",
    "iso-8859-15",
    "cp1250",
    "cp1251",
    "shift_jis",
    "gb18030",
    "euc-kr",
    "big5",
)


class ColumnTypes(serializers.JSONField):
    def to_internal_value(self, data: Any) -> Any:
        try:
            found = super().to_internal_value(data)
            if has_odd_text(found):
                self.fail("invalid")
        except RecursionError:
            self.fail("invalid")
        return found


class VersionUpload(serializers.Serializer[Any]):
    """A file, and what it leaves open. Everything but the file is found out where it isn't said."""

    file = serializers.FileField(required=False)  # its absence is told by the action
    delimiter = serializers.ChoiceField(list(DELIMITERS), required=False)
    header = serializers.BooleanField(
        required=False,
        allow_null=True,
        default=None,
        help_text="Whether the first line names the columns.",
    )
    encoding = serializers.ChoiceField(ENCODINGS, required=False)
    columns = ColumnTypes(
        required=False,
        help_text='Types of columns by name, such as {"zip": "string"}: integer, float, boolean, '
        "string, date or datetime. A row with a value that does not fit is set aside.",
    )

    def validate_columns(self, columns: Any) -> dict[str, str]:
        if not isinstance(columns, dict) or any(
            not isinstance(dtype, str) or dtype not in DTYPES for dtype in columns.values()
        ):
            raise serializers.ValidationError(
                f"Give an object of column names and types; a type is one of {', '.join(DTYPES)}."
            )
        return columns

    @property
    def options(self) -> dict[str, Any]:
        """What was said about the file, for the action."""
        said = self.validated_data
        found = {name: said[name] for name in ("encoding", "columns") if said.get(name)}
        if said.get("delimiter"):
            found["delimiter"] = DELIMITERS[said["delimiter"]]
        if said.get("header") is not None:
            found["header"] = said["header"]
        return found


class Upload(VersionUpload):
    name = serializers.CharField(max_length=120, required=False, default="", allow_blank=True)
    description = serializers.CharField(
        max_length=2000, required=False, default="", allow_blank=True
    )


class Change(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=120, required=False)
    description = serializers.CharField(max_length=2000, required=False, allow_blank=True)
    roles = serializers.DictField(child=serializers.CharField(), required=False)


class PreviewAsked(serializers.Serializer[Any]):
    rows = serializers.IntegerField(min_value=1, max_value=1000, default=50)
    offset = serializers.IntegerField(min_value=0, max_value=2**62, default=0)


class ImageAsked(serializers.Serializer[Any]):
    column = serializers.CharField(default="image", max_length=200)
    row = serializers.IntegerField(min_value=0, max_value=2**62, default=0, help_text="From 0.")


class Preview(serializers.Serializer[Any]):
    version = serializers.UUIDField()
    total = serializers.IntegerField()
    offset = serializers.IntegerField()
    columns = serializers.ListField(child=serializers.CharField())
    rows = serializers.ListField(child=serializers.DictField())


class Stats(serializers.Serializer[Any]):
    version = serializers.UUIDField()
    rows = serializers.IntegerField()
    columns = serializers.ListField(child=serializers.DictField())


class AssociationsAsked(serializers.Serializer[Any]):
    column = serializers.CharField(
        max_length=500, default="", trim_whitespace=False, help_text="Only pairs with this column."
    )


class Association(serializers.Serializer[Any]):
    columns = serializers.ListField(child=serializers.CharField(), min_length=2, max_length=2)
    measure = serializers.ChoiceField(["spearman", "cramers_v", "correlation_ratio"])
    value = serializers.FloatField(
        allow_null=True, help_text="-1 to 1 (spearman) or 0 to 1; null where the rows can't say."
    )
    pearson = serializers.FloatField(allow_null=True, help_text="Beside Spearman's alone.")
    rows = serializers.IntegerField(help_text="In which both columns have a value.")


class Associations(serializers.Serializer[Any]):
    version = serializers.UUIDField()
    columns = serializers.ListField(child=serializers.CharField(), help_text="Those measured.")
    left_out = serializers.IntegerField(help_text="Further columns that were too many.")
    rows = serializers.IntegerField(help_text="Of the sample that was measured.")
    pairs = serializers.ListField(child=Association())


class SampleInfo(serializers.Serializer[Any]):
    key = serializers.CharField()
    title = serializers.CharField()
    sentence = serializers.CharField()
    target = serializers.CharField()
