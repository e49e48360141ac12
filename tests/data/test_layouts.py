"""Data sets as people have them: archives of macOS, captions and tables of other tools, pictures of other formats."""

import json
import os
import zipfile

import pytest

from latent_diffusion.data.batches.folder import DataConfig, ImageFolder
from latent_diffusion.errors import ConfigError, DataError

COMPANION = b"\0\5\x16\7\0\2\0\0Mac OS X        " + b"\xb0" * 40


def read(path, **settings) -> ImageFolder:
    return ImageFolder(DataConfig(path=str(path), size=16, **settings), seed=7)


def captions(data: ImageFolder) -> dict[str, str]:
    return {str(row["file_name"]): fields[0][0] for row, fields in zip(data.rows, data.captions)}


@pytest.fixture
def written(tmp_path, encoded):
    """Return a function that writes a folder: name -> text, bytes, or None for a picture of its ending."""

    def write(files):
        for number, (name, content) in enumerate(files.items()):
            file = tmp_path / "set" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            form = {".jfif": "JPEG", ".jpg": "JPEG", ".gif": "GIF"}.get(file.suffix, "PNG")
            content = encoded(form=form, seed=number) if content is None else content
            file.write_bytes(content.encode() if isinstance(content, str) else content)
        return tmp_path / "set"

    return write


@pytest.mark.parametrize("table", [True, False])
def test_an_archive_of_macos_is_its_folder(written, tmp_path, table):
    row = '{"file_name": "a.png", "text": "a cat"}\n'
    files = {"cats/a.png": None, **({"cats/metadata.jsonl": row} if table else {"cats/a.txt": "a cat"})}
    companions = [f"__MACOSX/cats/._{name.split('/')[1]}" for name in files] + ["__MACOSX/._cats", "cats/.DS_Store"]
    folder = written(files | dict.fromkeys(companions, COMPANION))
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in [*files, *companions]:
            archive.write(folder / name, name)
    assert captions(read(tmp_path / "set.zip")) == {"a.png": "a cat"}


def test_companions_in_a_folder_are_left_out(written):
    folder = written({"a.png": None, "a.txt": "a cat", "._a.png": COMPANION, "._a.txt": COMPANION, "Thumbs.db": "x"})
    assert captions(read(folder)) == {"a.png": "a cat"}


@pytest.mark.parametrize("caption", ["a.txt", "a.caption", "a.TXT"])
def test_captions_beside_pictures(written, caption):
    assert captions(read(written({"a.jfif": None, caption: "a cat\n"}))) == {"a.jfif": "a cat"}


def test_two_captions_of_one_picture_are_refused(written):
    with pytest.raises(DataError, match=r"a\.png: 2 captions, 'a\.caption', 'a\.txt'; keep one"):
        read(written({"a.png": None, "a.txt": "a cat", "a.caption": "cat"}))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-8-sig"])
def test_captions_with_a_byte_order_mark(written, encoding):
    text = "ein Käfer"
    data = b"\xfe\xff" + text.encode("utf-16-be") if encoding == "utf-16-be" else text.encode(encoding)
    assert captions(read(written({"a.png": None, "a.txt": data}))) == {"a.png": text}
    line = json.dumps({"file_name": "a.png", "text": text}, ensure_ascii=False)
    data = b"\xfe\xff" + line.encode("utf-16-be") if encoding == "utf-16-be" else line.encode(encoding)
    assert captions(read(written({"a.png": None, "metadata.jsonl": data}))) == {"a.png": text}


def test_damaged_utf_16_is_named(written):
    with pytest.raises(DataError, match=r"a\.txt: damaged UTF-16.*save it as UTF-8"):
        read(written({"a.png": None, "a.txt": "a cat".encode("utf-16")[:-1]}))


def test_all_captions_that_cannot_be_read_are_named_at_once(written):
    files = {"a.png": None, "a.txt": "Käse".encode("latin-1"), "b.png": None, "b.txt": "a", "c.png": None}
    folder = written(files | {"c.txt": "猫".encode("shift-jis")})
    with pytest.raises(DataError, match=r"2 captions cannot be read: .*a\.txt: byte 1 .*; .*c\.txt: byte 0 .*UTF-8"):
        read(folder)


def test_pictures_of_other_formats_are_counted(written, caplog):
    files = {"a.png": None, "a.txt": "a", "b.gif": None, "c.GIF": "x", "d.psd": "x", "notes.md": "x"}
    read(written(files))
    assert "3 pictures are left out" in caplog.text and "2 .gif, 1 .psd" in caplog.text


def test_a_csv_file_is_a_table(written):
    table = '\ufefffile_name,text,split\r\n./a.png,"a cat, ""big""\nand old",train\r\n\r\nsub/b.png,a dog,\r\n'
    data = read(written({"a.png": None, "sub/b.png": None, "metadata.csv": table}))
    assert captions(data) == {"a.png": 'a cat, "big" and old', "sub/b.png": "a dog"}
    assert "split" not in data.rows[1]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("name,text\na.png,a\n", r"csv:1: no column `file_name`; columns are \['name', 'text'\]"),
        ("file_name;text\na.png;a\n", r"no column `file_name`; columns are \['file_name;text'\], separated by commas"),
        ("", r"no column `file_name`; columns are \[\]"),
        ("file_name,text,text\na.png,a,b\n", "csv:1: column 'text' appears twice"),
        ("file_name,text\na.png,a\na.png\n", "csv:3: 1 cells, but there are 2 columns"),
        ("file_name,text\na.png,a,b\n", "csv:2: 3 cells"),
        ('file_name,text\na.png,"a\n', "csv:2: not CSV"),
        ("file_name,text\na.png," + "x" * 5_000_000, "csv:2: not CSV: field larger"),
        ("file_name,text\n,a\n", "csv:2: `file_name` must be a file name"),
        ("file_name,text\n../a.png,a\n", "lead out of the data set"),
        ("file_name,text\nb.png,a\n", r"1 of 1 rows name pictures that do not exist: 'b\.png'"),
    ],
    ids=range(11),
)  # D21
def test_broken_csv_is_named(written, table, words):
    with pytest.raises(DataError, match=words):
        read(written({"a.png": None, "metadata.csv": table}))


@pytest.mark.parametrize("table", ["metadata.jsonl", "metadata.csv"])
def test_a_table_in_the_one_folder_with_pictures(written, table):
    text = "file_name,text\na.png,a cat\n" if table.endswith("csv") else '{"file_name": "./a.png", "text": "a cat"}\n'
    folder = written({"train/a.png": None, f"train/{table}": text})
    assert captions(read(folder)) == {"train/a.png": "a cat"}
    written({"b.png": None})
    with pytest.raises(DataError, match=rf"train/{table} lies in a folder, and 1 pictures lie outside it: 'b\.png'"):
        read(folder)


def test_two_tables_are_refused(written):
    row = '{"file_name": "a.png", "text": "a cat"}\n'
    with pytest.raises(DataError, match=r"2 tables: 'test/metadata\.jsonl', 'train/metadata\.jsonl'"):
        read(written({f"{part}/{name}": text for part in ("train", "test")
                      for name, text in (("a.png", None), ("metadata.jsonl", row))}))  # fmt: skip


def test_a_set_without_captions_says_what_was_looked_for(written):
    with pytest.raises(ConfigError, match=r"no captions; looked for metadata\.jsonl or .*NAME\.txt or"):
        read(written({"a.png": None, "captions/a.txt": "a cat"}))


def test_a_set_without_pictures_says_what_it_holds(written):
    with pytest.raises(DataError, match=r"0 pictures .*it holds 2 \.arrow, 1 \.json; looked for metadata"):
        read(written({"a.arrow": "x", "b.arrow": "x", "c.json": "x"}))


def test_captions_that_are_missing_are_counted_before_a_picture_is_decoded(written, monkeypatch):  # D15
    files = {f"{k:02}.png": None for k in range(13)} | {"00.txt": "a", "01.txt": " \n"}
    folder = written(files)
    monkeypatch.setattr(ImageFolder, "_scan", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DataError, match=r"12 of 13 pictures .* no caption in \['text'\]: '01\.png'.*, \.\.\.; write"):
        read(folder)


def test_captions_that_may_be_missing_are_counted(written, caplog):  # D15
    data = read(written({"a.png": None, "b.png": None, "b.txt": "a dog"}), missing_captions="empty")
    assert captions(data) == {"a.png": "", "b.png": "a dog"}
    assert "1 of 2 pictures" in caplog.text and "'a.png'; they get the empty prompt" in caplog.text


def test_too_many_bad_pictures_say_which_share_to_allow(written):
    folder = written({f"{k}.png": None if k else "x" for k in range(20)} | {f"{k}.txt": "a" for k in range(20)})
    with pytest.raises(DataError, match=r"1 of 20 .*data\.max_bad=0\.01; repair them, or set .*at least 0\.05"):
        read(folder, on_bad="skip")
    assert len(read(folder, on_bad="skip", max_bad=0.05)) == 19


def test_a_path_that_is_no_data_set_says_what_is(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"x")
    with pytest.raises(DataError, match=r"neither a folder nor a zip archive; give an image folder or a \.zip of one"):
        read(tmp_path / "a.bin")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="neither a folder nor a zip archive"):
        read(tmp_path / "pipe")
