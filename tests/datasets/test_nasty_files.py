"""Files as they come: each is read for what it is, or refused in a sentence that helps."""

import gzip
import io
import json
import zipfile
from pathlib import Path

import polars as pl
import pytest
import zstandard

from tests.datasets.ingesting import Result, read
from workers.node.channel import WorkError

ROWS = "".join(f"{i},n{i % 7},{i / 4}\n" for i in range(100))
TABLE = "id,name,x\n" + ROWS


def refused(work: Path, content: bytes | str, filename: str = "table.csv", **payload) -> WorkError:
    with pytest.raises(WorkError) as caught:
        read(work, content, filename, **payload)
    assert caught.value.sentence.endswith((".", "?"))
    json.dumps(caught.value.data)
    return caught.value


# --- Layout --------------------------------------------------------------------------------------


def test_a_plain_csv(tmp_path):
    result = read(tmp_path, TABLE)
    assert result.frame.shape == (100, 3)
    assert result.dtypes == {"id": "integer", "name": "string", "x": "float"}
    assert result.data["rejected"] == 0
    assert result.rejects is None
    assert result.data["source"] == {
        "format": "csv", "encoding": "utf-8", "delimiter": ",", "quote": '"', "header": True,
    }  # fmt: skip


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(tmp_path, delimiter):
    result = read(tmp_path, TABLE.replace(",", delimiter))
    assert result.frame.columns == ["id", "name", "x"]
    assert result.data["source"]["delimiter"] == delimiter


def test_semicolons_with_decimal_commas(tmp_path):
    result = read(tmp_path, "a;b;c\n1,5;2,25;x\n3,5;4,75;y\n" * 1)
    assert result.frame.rows() == [(1.5, 2.25, "x"), (3.5, 4.75, "y")]


@pytest.mark.parametrize("ending", ["\r\n", "\r", "\n"])
def test_line_ends(tmp_path, ending):
    result = read(tmp_path, TABLE.replace("\n", ending))
    assert result.frame.shape == (100, 3)
    assert result.frame["x"][3] == 0.75


@pytest.mark.parametrize(
    ("late", "found", "names", "rejected"),
    [
        ("Jörg,1".encode(), "utf-8", {"Ann", "Jörg"}, 0),
        ("Jörg,1".encode("cp1252"), "cp1252", {"Ann", "Jörg"}, 0),
        (
            "Jörg,1\nZoë,2\n".encode() + "Jörg,1".encode("cp1252"),
            "utf-8",
            {"Ann", "Jörg", "Zoë"},
            1,
        ),
        ('Jörg" x,1'.encode("cp1252"), "cp1252", {"Ann", 'Jörg" x'}, 0),  # read with care
    ],
)
def test_every_byte_has_a_say_in_the_encoding(tmp_path, late, found, names, rejected):
    """Text is read as if it went on as it began. Where it does not, nothing of that stays."""
    early = b"name,n\n" + b"Ann,1\n" * 400_000
    result = read(tmp_path, early + late + b"\n")
    assert result.data["source"]["encoding"] == found
    assert set(result.frame["name"]) == names
    assert result.data["rows"] == 400_000 + len(late.splitlines()) - rejected
    assert result.data["rejected"] == rejected
    assert len(set(result.data["notices"])) == len(result.data["notices"])


@pytest.mark.parametrize(
    ("encoding", "found"),
    [
        ("utf-8", "utf-8"),
        ("utf-8-sig", "utf-8"),
        ("utf-16", "utf-16-le"),
        ("utf-16-be", "utf-16-be"),
        ("utf-16-le", "utf-16-le"),
        ("utf-32", "utf-32-le"),
        ("cp1252", "cp1252"),
    ],
)
def test_encodings(tmp_path, encoding, found):
    text = "stadt,größe\n" + "".join(f"Köln {i},{i}\n" for i in range(50))
    result = read(tmp_path, text.encode(encoding))
    assert result.frame.columns == ["stadt", "größe"]
    assert result.frame["stadt"][7] == "Köln 7"
    assert result.data["source"]["encoding"] == found


def test_a_few_damaged_lines_in_utf8_are_set_aside(tmp_path):
    lines = [f"Köln {i},{i}\n".encode() for i in range(200)]
    lines[50] = b"K\xf6ln,50\n"
    result = read(tmp_path, b"city,n\n" + b"".join(lines))
    assert result.frame.height == 199
    assert result.rejects["line"].to_list() == [52]
    assert "UTF-8" in result.rejects["reason"][0]


def test_no_header(tmp_path):
    result = read(
        tmp_path, "5.1,3.5,setosa\n4.9,3.0,setosa\n6.2,3.4,virginica\n5.9,3.0,virginica\n"
    )
    assert result.frame.columns == ["column_1", "column_2", "column_3"]
    assert result.frame.height == 4
    assert "column_1" in result.notices


def test_a_header_of_years_is_a_header(tmp_path):
    result = read(tmp_path, "country,2019,2020,2021\nAustria,5,6,7\nBelgium,8,9,10\n")
    assert result.frame.columns == ["country", "2019", "2020", "2021"]


def test_header_and_delimiter_can_be_said(tmp_path):
    options = {"header": False, "delimiter": ","}
    result = read(tmp_path, "a,b\nc,d\n", options=options)
    assert result.frame.rows() == [("a", "b"), ("c", "d")]


def test_titles_above_the_table_are_left_out_with_a_word(tmp_path):
    result = read(tmp_path, "Report of 2024\n\nid,name,x\n" + ROWS)
    assert result.frame.shape == (100, 3)
    assert "Report of 2024" in result.notices


def test_row_names_without_a_header_as_r_writes_them(tmp_path):
    result = read(tmp_path, '"mpg","cyl"\n"Mazda RX4",21,6\n"Datsun 710",22.8,4\n')
    assert result.frame.columns == ["row_name", "mpg", "cyl"]


def test_a_nameless_index_column_gets_a_name(tmp_path):
    result = read(tmp_path, ",a\n" + "".join(f"{i},{i * i % 17}\n" for i in range(30)))
    assert result.frame.columns == ["column_1", "a"]
    assert result.roles["column_1"] == "identifier"


def test_one_column(tmp_path):
    result = read(tmp_path, "x\n1\n\n3\n\n")
    assert result.frame["x"].to_list() == [1, None, 3]


def test_blank_lines_are_no_rows(tmp_path):
    result = read(tmp_path, "a,b\n1,2\n\n   \n3,4\n\n\n")
    assert result.frame.rows() == [(1, 2), (3, 4)]
    assert result.data["rejected"] == 0


def test_single_quotes(tmp_path):
    result = read(tmp_path, "a,b\n'x, y','1'\n'z','2'\n")
    assert result.frame.rows() == [("x, y", 1), ("z", 2)]


def test_backslash_escapes(tmp_path):
    text = "a,b\n" + '"say \\"hi\\", then go",1\n"plain",2\n' * 10
    result = read(tmp_path, text)
    assert result.frame["a"][0] == 'say "hi", then go'
    assert result.frame.height == 20


def test_spaces_around_quotes(tmp_path):
    result = read(tmp_path, 'a, b, c\n1, "x, y", 3\n2, "z" , 4\n')
    assert result.frame.rows() == [(1, "x, y", 3), (2, "z", 4)]


# --- Rows that do not fit ------------------------------------------------------------------------


def test_ragged_rows_are_set_aside_with_their_line_numbers(tmp_path):
    lines = TABLE.splitlines()
    lines[10] = "9,n2"
    lines[20] = "19,n5,4.75,more"
    result = read(tmp_path, "\n".join(lines))
    assert result.frame.height == 98
    assert result.data["rejected"] == 2
    assert result.rejects.rows() == [
        (11, "it has 2 fields where 3 are expected", "9,n2"),
        (21, "it has 4 fields where 3 are expected", "19,n5,4.75,more"),
    ]
    assert "line 11" in result.notices


def test_a_short_row_and_a_long_one_do_not_make_up_for_each_other(tmp_path):
    lines = TABLE.splitlines()
    lines[10], lines[20] = "9,n2", "19,n5,,x"
    result = read(tmp_path, "\n".join(lines))
    assert result.rejects["line"].to_list() == [11, 21]


def test_too_many_bad_rows_fail_with_line_numbers(tmp_path):
    lines = TABLE.splitlines()
    for at in range(10, 40):
        lines[at] = "x"
    error = refused(tmp_path, "\n".join(lines))
    assert error.code == "bad-rows"
    assert "30 of 100 rows" in error.sentence
    assert "line 11" in error.sentence
    assert error.data["lines"][0] == {
        "line": 11, "reason": "it has 1 field where 3 are expected", "raw": "x",
    }  # fmt: skip


def test_delimiters_behind_the_last_column_do_no_harm(tmp_path):
    result = read(tmp_path, "a,b\n" + "1,2,\n3,4,,\n" * 20)
    assert result.frame.shape == (40, 2)


def test_a_header_that_names_fewer_columns_is_refused(tmp_path):
    error = refused(tmp_path, "a,b\n" + "1,2,3,4\n" * 20)
    assert error.code == "header-width"


def test_newlines_and_quotes_in_quotes(tmp_path):
    text = "a,b\n" + '"line 1\nline ""2""\n\n, and 3",7\nplain,8\n' * 50
    result = read(tmp_path, text)
    assert result.frame.height == 100
    assert result.frame["a"][0] == 'line 1\nline "2"\n\n, and 3'


def test_line_numbers_count_lines_and_not_records(tmp_path):
    text = "a,b\n" + '"x\ny",1\n' * 20 + "bad\n" + '"x\ny",2\n' * 20
    result = read(tmp_path, text)
    assert result.rejects["line"].to_list() == [42]


def test_a_quote_in_the_middle_of_a_field_is_a_character(tmp_path):
    result = read(tmp_path, 'size,n\n5" pipe,1\n6" pipe,2\n7 pipe,3\n')
    assert result.frame["size"].to_list() == ['5" pipe', '6" pipe', "7 pipe"]


def test_a_quote_never_closed_loses_one_line_only(tmp_path):
    lines = TABLE.splitlines()
    lines[50] = '49,"n0,12.25'
    result = read(tmp_path, "\n".join(lines))
    assert result.frame.height == 99
    assert result.rejects["line"].to_list() == [51]
    assert result.rejects["reason"][0] == "a quote is opened and never closed"
    assert result.frame["id"].to_list() == [i for i in range(100) if i != 49]


def test_text_behind_a_closing_quote_loses_one_line_only(tmp_path):
    lines = TABLE.splitlines()
    lines[50] = '49,"n0"oops,12.25'
    result = read(tmp_path, "\n".join(lines))
    assert result.rejects["line"].to_list() == [51]


def test_nul_bytes_lose_their_line_only(tmp_path):
    lines = TABLE.splitlines()
    lines[50] = "49,n\0,12.25"
    result = read(tmp_path, "\n".join(lines))
    assert result.rejects["reason"].to_list() == ["it holds a NUL byte"]
    assert "\0" not in result.rejects["raw"][0]


# --- What can't be a table -----------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"\n\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file(tmp_path, content):
    assert refused(tmp_path, content).code == "empty-file"


@pytest.mark.parametrize("content", ["id,name,x\n", "id,name,x", "id;name\r\n\r\n"])
def test_header_only(tmp_path, content):
    error = refused(tmp_path, content)
    assert error.code == "no-rows"
    assert "header" in error.sentence


def test_duplicate_column_names_are_named(tmp_path):
    error = refused(tmp_path, "a,b,a,c,b,a\n1,2,3,4,5,6\n")
    assert error.code == "duplicate-columns"
    assert "'a' (3 times), 'b' (2 times)" in error.sentence


def test_twenty_thousand_columns(tmp_path):
    header = ",".join(f"c{i}" for i in range(20_000))
    row = ",".join(str(i) for i in range(20_000))
    error = refused(tmp_path, f"{header}\n{row}\n{row}\n")
    assert error.code == "too-many-columns"
    assert "20,000" in error.sentence


@pytest.mark.parametrize(
    "content",
    [
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40,
        b"%PDF-1.7\n" + bytes(range(256)) * 40,
        b"\x7fELF" + bytes(range(256)) * 40,
        bytes(range(256)) * 100,
        b"\0" * 5000,
    ],
)
def test_a_binary_file_called_csv(tmp_path, content):
    assert refused(tmp_path, content).code == "binary-file"


def test_a_zip_archive(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("table.csv", TABLE)
    assert refused(tmp_path, buffer.getvalue(), "table.zip").code == "zip-archive"


def test_prose_is_one_column_or_refused(tmp_path):
    with pytest.raises(WorkError):
        read(tmp_path, b"{not json\n" * 30, "x.jsonl")


# --- Compression ---------------------------------------------------------------------------------


def test_gzip_and_zstd(tmp_path):
    packed = {
        "t.csv.gz": gzip.compress(TABLE.encode()),
        "t.csv.zst": zstandard.compress(TABLE.encode()),
        "two.csv.gz": gzip.compress(TABLE[:500].encode()) + gzip.compress(TABLE[500:].encode()),
        "two.csv.zst": zstandard.compress(TABLE[:500].encode())
        + zstandard.compress(TABLE[500:].encode()),
    }
    for name, content in packed.items():
        assert read(tmp_path / name, content, name).frame.shape == (100, 3), name


@pytest.mark.parametrize("lost", [1, 4, 9, 100])
def test_truncated_compression(tmp_path, lost):
    text = "".join(f"{i},{i * 7919 % 1000}\n" for i in range(3000)).encode()
    for name, content in (("gz", gzip.compress(text)), ("zst", zstandard.compress(text))):
        error = refused(tmp_path / name, content[:-lost], f"t.csv.{name}")
        assert error.code == "truncated", name


def test_damaged_compression(tmp_path):
    content = bytearray(gzip.compress(TABLE.encode() * 20))
    content[100:200] = b"x" * 100
    assert refused(tmp_path, bytes(content), "t.csv.gz").code == "bad-compression"


def test_decompression_bombs(tmp_path):
    limit = 10 << 20
    zeros = b"a,b\n" + b"1,2\n" * (8 << 20)
    for name, content in (
        ("gz", gzip.compress(zeros, 1)),
        ("zst", zstandard.compress(zeros)),
    ):
        work = tmp_path / name
        error = refused(work, content, f"t.csv.{name}", max_decoded_bytes=limit)
        assert error.code == "too-large-decoded"
        assert (work / "unpacked").stat().st_size <= limit


def test_compressed_parquet_is_told_apart(tmp_path):
    buffer = io.BytesIO()
    pl.DataFrame({"a": [1]}).write_parquet(buffer)
    assert refused(tmp_path, gzip.compress(buffer.getvalue())).code == "compressed-binary"


# --- JSON Lines ----------------------------------------------------------------------------------


def lines_of(*rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_json_lines(tmp_path):
    rows = [
        {"a": i, "b": f"t{i}", "c": {"d": i / 2, "e": None}, "ok": i % 2 == 0} for i in range(30)
    ]
    rows[20]["late"] = "x"
    result = read(tmp_path, lines_of(*rows), "t.jsonl")
    assert result.dtypes == {
        "a": "integer", "b": "string", "c.d": "float", "c.e": "string", "ok": "boolean",
        "late": "string",
    }  # fmt: skip
    assert result.frame["late"].null_count() == 29
    assert result.frame["c.d"][3] == 1.5


def test_json_lines_that_do_not_fit(tmp_path):
    good = lines_of(*({"a": i} for i in range(100))).splitlines()
    good[10], good[20], good[30] = "{broken", "[1]", '{"a": 1, "a": 2}'
    result = read(tmp_path, "\n".join(good), "t.jsonl")
    assert result.frame.height == 97
    assert result.rejects["line"].to_list() == [11, 21, 31]


def test_json_lists_are_refused(tmp_path):
    error = refused(tmp_path, lines_of({"a": 1}, {"a": [1, 2]}), "t.jsonl")
    assert error.code == "nested-column"
    assert "'a'" in error.sentence


def test_json_with_nul_and_half_pairs(tmp_path):
    good = lines_of(*({"a": f"t{i}"} for i in range(100))).splitlines()
    good[10], good[20] = r'{"a": "x\u0000y"}', r'{"a": "\ud800"}'
    result = read(tmp_path, "\n".join(good), "t.jsonl")
    assert result.rejects["line"].to_list() == [21]
    assert "\0" not in json.dumps(result.data, ensure_ascii=False)


def test_a_json_array(tmp_path):
    result = read(tmp_path, json.dumps([{"a": 1}, {"a": 2.5}]), "t.json")
    assert result.frame["a"].to_list() == [1.0, 2.5]


# --- Parquet -------------------------------------------------------------------------------------


def parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def test_parquet_types(tmp_path):
    frame = pl.DataFrame(
        {
            "small": pl.Series([1, 2, None], dtype=pl.Int8),
            "real": pl.Series([1.5, float("nan"), float("inf")], dtype=pl.Float32),
            "flag": [True, None, False],
            "cat": pl.Series(["a", "b", "a"], dtype=pl.Categorical),
            "at": pl.Series([0, 1, 2]).cast(pl.Datetime("ns")).dt.replace_time_zone("Europe/Rome"),
            "day": pl.Series([0, 1, 2]).cast(pl.Date),
            "money": pl.Series(["1.10", "2.20", None]).cast(pl.Decimal(10, 2)),
            "nothing": [None, None, None],
        }
    )
    result = read(tmp_path, parquet(frame), "t.parquet")
    assert result.dtypes == {
        "small": "integer", "real": "float", "flag": "boolean", "cat": "string", "at": "datetime",
        "day": "date", "money": "float", "nothing": "string",
    }  # fmt: skip
    assert result.frame["real"].to_list() == [1.5, None, None]
    assert result.frame["money"].to_list() == [1.1, 2.2, None]
    assert result.roles["nothing"] == "constant"


def test_parquet_structs_are_spread_and_lists_refused(tmp_path):
    frame = pl.DataFrame({"a": [{"b": 1, "c": {"d": "x"}}, {"b": 2, "c": {"d": "y"}}]})
    result = read(tmp_path / "s", parquet(frame), "t.parquet")
    assert result.frame.columns == ["a.b", "a.c.d"]
    assert "nested" in result.notices
    error = refused(tmp_path / "l", parquet(pl.DataFrame({"tags": [[1], [2, 3]]})), "t.parquet")
    assert error.code == "nested-column"
    assert "'tags'" in error.sentence


def test_a_parquet_bomb_is_refused_by_its_footer(tmp_path):
    frame = pl.select(pl.repeat(7, 4_000_000, dtype=pl.Int64).alias("a"))
    content = parquet(frame)
    assert len(content) < 100_000
    error = refused(tmp_path, content, "t.parquet", max_decoded_bytes=10 << 20)
    assert error.code == "too-large-decoded"
    assert "4,000,000 rows" in error.sentence


def test_a_truncated_or_damaged_parquet(tmp_path):
    content = parquet(pl.DataFrame({"a": range(1000)}))
    assert refused(tmp_path / "t", content[:-20], "t.parquet").code == "truncated"
    broken = bytearray(content)
    broken[10:200] = b"x" * 190
    assert refused(tmp_path / "b", bytes(broken), "t.parquet").code == "bad-values"
    broken = bytearray(content)
    broken[-100:-8] = b"\xff" * 92
    assert refused(tmp_path / "f", bytes(broken), "t.parquet").code == "bad-parquet"


def test_parquet_without_rows(tmp_path):
    content = parquet(pl.DataFrame({"a": []}, schema={"a": pl.Int64}))
    assert refused(tmp_path, content, "t.parquet").code == "no-rows"


# --- Excel ---------------------------------------------------------------------------------------


def workbook(**sheets: list[list[object]]) -> bytes:
    """A minimal .xlsx with inline strings."""
    buffer = io.BytesIO()
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    rel = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "[Content_Types].xml",
            f'<Types xmlns="{package}/content-types"><Default Extension="rels" ContentType='
            '"application/vnd.openxmlformats-package.relationships+xml"/><Default Extension="xml" '
            'ContentType="application/xml"/></Types>',
        )
        archive.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" '
            f'Type="{rel}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        )
        archive.writestr(
            "xl/workbook.xml",
            f'<workbook xmlns="{main}" xmlns:r="{rel}"><sheets>'
            + "".join(
                f'<sheet name="{name}" sheetId="{i}" r:id="r{i}"/>'
                for i, name in enumerate(sheets, 1)
            )
            + "</sheets></workbook>",
        )
        archive.writestr(
            "xl/_rels/workbook.xml.rels",
            f'<Relationships xmlns="{package}/relationships">'
            + "".join(
                f'<Relationship Id="r{i}" Type="{rel}/worksheet" Target="worksheets/s{i}.xml"/>'
                for i in range(1, len(sheets) + 1)
            )
            + "</Relationships>",
        )
        for i, rows in enumerate(sheets.values(), 1):
            body = ""
            for r, row in enumerate(rows, 1):
                cells = ""
                for c, value in enumerate(row):
                    ref = f"{chr(65 + c)}{r}"
                    if isinstance(value, str):
                        cells += f'<c r="{ref}" t="inlineStr"><is><t>{value}</t></is></c>'
                    elif value is not None:
                        cells += f'<c r="{ref}"><v>{value}</v></c>'
                body += f'<row r="{r}">{cells}</row>'
            archive.writestr(
                f"xl/worksheets/s{i}.xml",
                f'<worksheet xmlns="{main}"><sheetData>{body}</sheetData></worksheet>',
            )
    return buffer.getvalue()


def test_excel(tmp_path):
    content = workbook(
        Cover=[],
        Data=[["id", "name", "x"], [1, "a", 0.5], [2, "b", 1.5], [], [3, None, 2]],
        More=[["y"], [1]],
    )
    result = read(tmp_path, content, "t.xlsx")
    assert result.frame.rows() == [(1, "a", 0.5), (2, "b", 1.5), (3, None, 2.0)]
    assert "'Data'" in result.notices


def test_excel_that_can_not_be_a_table(tmp_path):
    assert refused(tmp_path / "e", workbook(A=[], B=[]), "t.xlsx").code == "empty-file"
    twice = workbook(A=[["a", "a"], [1, 2]])
    assert refused(tmp_path / "d", twice, "t.xlsx").code == "duplicate-columns"
    assert refused(tmp_path / "h", workbook(A=[["a", "b"]]), "t.xlsx").code == "no-rows"
    content = workbook(A=[["a"], [1]])
    assert refused(tmp_path / "t", content[:-40], "t.xlsx").code == "bad-excel"


def test_excel_with_one_cell_far_away_is_refused_before_it_is_read(tmp_path):
    content = workbook(A=[["a"], [1]])
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for part in old.infolist():
            data = old.read(part).replace(b'r="A2"', b'r="XFD1048576"')
            new.writestr(part, data)
    error = refused(tmp_path, buffer.getvalue(), "t.xlsx")
    assert error.code == "too-large-decoded"
    assert "16,384 columns" in error.sentence


def assert_plain(result: Result) -> None:
    json.dumps(result.data, allow_nan=False)


def test_statistics_are_plain_json(tmp_path):
    assert_plain(read(tmp_path, "a,b\n1e308,x\n-1e308,y\ninf,z\n" * 10))


def test_statistics_of_a_very_wide_table_stay_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.ingest.MAX_STATISTICS", 200_000)
    width, long = 300, "x" * 90
    header = ",".join(f"c{i}" for i in range(width))
    rows = "\n".join(",".join([f"{long}{r}"] * width) for r in range(60))
    result = read(tmp_path, f"{header}\n{rows}\n")
    assert len(json.dumps(result.data["columns"])) < 400_000
    assert result.column("c7")["distinct"] == 60
    assert result.column("c7")["top"]
