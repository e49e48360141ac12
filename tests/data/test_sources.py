"""The same forty pictures in every layout are the same batches, on one process or two, from the start or resumed."""

import csv
import io
import json
import tarfile
import zipfile

import pytest
import torch

from latent_diffusion.config import RunConfig, parse_section
from latent_diffusion.data.batches.folder import DataConfig, ImageFolder
from latent_diffusion.data.batches.loader import batches
from latent_diffusion.errors import ConfigError, DataError
from latent_diffusion.training.numbers import sample_numbers

COUNT = 40
LAYOUTS = (
    "imagefolder",
    "csv",
    "beside",
    "caption",
    "zip",
    "parquet",
    "table",
    "datasets",
    "webdataset",
    "kohya",
    "several",
)


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def pictures(request):
    """Name, file, caption of each picture; sizes and formats differ."""
    from tests.data.conftest import _encoded  # the maker of random pictures

    forms = ("PNG", "JPEG", "WEBP")
    return [
        (f"{k:02}.{forms[k % 3].lower()}", _encoded((24 + k, 40), forms[k % 3], k), f"picture {k}, red, café")
        for k in range(COUNT)
    ]


def written(layout, root, pictures) -> dict:
    """Write the pictures in a layout; return the keys of `data:` that read them."""
    if layout in ("imagefolder", "csv", "beside", "caption", "table", "kohya", "several"):
        return written_as_files(layout, root, pictures)
    files = root / "files"
    files.mkdir(exist_ok=True)
    return {"zip": zipped, "parquet": as_parquet, "datasets": as_datasets, "webdataset": as_tars}[layout](
        files, pictures
    )


def written_as_files(layout, root, pictures) -> dict:
    files = root / "files" / "1_words" if layout == "kohya" else root / "files"
    parts = [files / f"{k}" for k in range(2)] if layout == "several" else [files]
    for part, share in zip(parts, (pictures[:15], pictures[15:]) if layout == "several" else [pictures]):
        part.mkdir(parents=True)
        for name, data, text in share:
            (part / name).write_bytes(data)
            if layout not in ("imagefolder", "csv", "table"):
                (part / name).with_suffix(".caption" if layout == "caption" else ".txt").write_text(text, "utf-8")
    rows = [{"file_name": name, "text": text} for name, _, text in pictures]
    if layout == "imagefolder":
        (files / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    if layout == "csv":
        with (files / "metadata.csv").open("w", encoding="utf-8", newline="") as table:
            writer = csv.DictWriter(table, ["file_name", "text"])
            writer.writeheader()
            writer.writerows(rows)
    if layout == "table":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(rows), files / "metadata.parquet")
    if layout == "several":
        return {"sources": [{"path": str(part)} for part in parts]}
    return {"path": str(root / "files")}


def zipped(files, pictures) -> dict:
    with zipfile.ZipFile(files / "set.zip", "w") as archive:
        for name, data, text in pictures:
            archive.writestr(f"top/{name}", data)
            archive.writestr(f"top/{name.split('.')[0]}.txt", text)
    return {"path": str(files / "set.zip")}


def as_parquet(files, pictures) -> dict:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for part, share in enumerate((pictures[:23], pictures[23:])):
        rows = [{"image": {"bytes": data, "path": name}, "text": text} for name, data, text in share]
        parquet.write_table(arrow.Table.from_pylist(rows), files / f"train-{part:05}.parquet", row_group_size=7)
    return {"path": str(files)}


def as_datasets(files, pictures) -> dict:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"picture": datasets.Image(), "text": datasets.Value("string")})
    columns = {"picture": [{"bytes": data, "path": None} for _, data, _ in pictures]}
    columns["text"] = [text for _, _, text in pictures]
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(files, num_shards=3)
    return {"path": str(files)}


def as_tars(files, pictures) -> dict:
    for part in range(3):
        with tarfile.open(files / f"{part:03}.tar", "w") as archive:
            for name, data, text in pictures[part * 14 : part * 14 + 14]:
                add(archive, name, data)
                add(archive, f"{name.split('.')[0]}.txt", text.encode())
    return {"path": f"{files}/{{000..002}}.tar"}


def made(config: DataConfig, ranks: int, start: int) -> list:
    """Return rows, captions, sizes and pixels of eight updates of eight pictures, ranks put together."""
    run = RunConfig.model_validate({"output": "x", "objective": {"name": "x"}, "data": {}, "steps": 8, "batch_size": 8})
    found = []
    for rank in range(ranks):
        data = ImageFolder(config, seed=3, batch=8)
        found.append(list(batches(data, sample_numbers(run, start=start, rank=rank, processes=ranks), workers=1)))
    return [
        (
            sum((part.row for part in parts), ()),
            sum((part.captions for part in parts), ()),
            torch.cat([part.size_ids for part in parts]),
            torch.cat([part.images for part in parts]),
        )
        for parts in zip(*found, strict=True)
    ]


def same(one, two) -> bool:
    return len(one) == len(two) and all(
        a[:2] == b[:2] and torch.equal(a[2], b[2]) and torch.equal(a[3], b[3]) for a, b in zip(one, two, strict=True)
    )


@pytest.fixture(scope="module")
def wanted(pictures, tmp_path_factory):
    root = tmp_path_factory.mktemp("wanted")
    return made(DataConfig(**written("imagefolder", root, pictures), **SETTINGS), 1, 0)


SETTINGS = {
    "size": 16, "flip": True, "caption_dropout": 0.2, "wording": {"shuffle": True, "keep": 1, "trigger": "sks"},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_batches(pictures, wanted, tmp_path, layout):
    place = written(layout, tmp_path, pictures)
    config = DataConfig(**place, **SETTINGS)
    assert same(made(config, 1, 0), wanted)
    assert same(made(config, 2, 3), wanted[3:])  # update 3 lies in mid-pass
    unchecked = DataConfig(**place, **SETTINGS, check="none")
    assert same(made(unchecked, 1, 4), wanted[4:])
    assert same(made(unchecked, 8, 6), wanted[6:])  # one picture a process


def test_draws_are_fresh_in_every_pass(make_folder):
    captions = {"wording": {"shuffle": True, "prefix": "a, b, c, d, e,"}}
    data = ImageFolder(DataConfig(path=str(make_folder(3)), size=16, flip=True, **captions), seed=3)
    samples = [data.sample(number) for number in range(3 * 12)]
    for row in range(3):
        own = [sample for sample in samples if sample.row == row]
        assert len(own) == 12 and {sample.flipped for sample in own} == {True, False}
        assert len({sample.caption for sample in own}) > 6


def test_a_remote_tar_is_read_through_fsspec(pictures, wanted, tmp_path):
    import fsspec

    written("webdataset", tmp_path, pictures)
    memory = fsspec.filesystem("memory")
    for file in (tmp_path / "files").glob("*.tar"):
        memory.pipe(f"/set/{file.name}", file.read_bytes())
    config = DataConfig(path="memory://set/{000..002}.tar", **SETTINGS)
    assert same(made(config, 1, 0), wanted)


def read(path, **settings) -> ImageFolder:
    return ImageFolder(DataConfig(path=str(path), size=16, **settings), seed=7)


def test_tars_with_json_masks_long_names_and_samples_without_a_picture(tmp_path, encoded):
    long = "folder/" + "n" * 120
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        add(archive, "x.txt", b"no picture")
        add(archive, f"{long}.json", b'{"text": "a cat", "kind": "good", "file_name": "other"}')
        add(archive, f"{long}.png", encoded())
        add(archive, f"{long}.mask.png", encoded(seed=1))
        add(archive, "y.txt", b"none either")
    with tarfile.open(tmp_path / "b.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        add(archive, f"{long}é.png", encoded(seed=2))
        add(archive, f"{long}é.json", b'{"text": "a dog", "kind": "bad"}')
    data = read(tmp_path, where={"kind": "good"})
    assert [row["file_name"] for row in data.rows] == [f"{long}.png"] and data.first_caption(0) == "a cat"
    assert data.mask(0).size == (32, 32)
    assert [row["file_name"] for row in read(tmp_path).rows] == [f"{long}.png", f"{long}é.png"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("cut", r"a\.tar'?: byte \d+: '1\.png' has \d+ bytes, but the file ends after"),
        ("doubled", r"a\.tar'?: '0' is there twice, with other samples between"),
        ("out", r"byte \d+: '\.\./0\.png' leads out"),
        ("link", r"'l\.png' is a link"),
        ("noise", r"byte 0: no header of a tar is there"),
        ("empty", r"0 pictures .*its files end in \['txt'\]"),
        ("gz", "compressed tar has to be unpacked"),
        ("twice", r"'0\.png' is there twice"),
    ],
)  # D28
def test_damaged_tars_are_named_with_shard_and_byte(tmp_path, encoded, change, words):
    names = {"doubled": ["0.png", "1.png", "0.txt"], "out": ["../0.png"], "empty": ["0.txt"], "twice": ["0.png"] * 2}
    file = tmp_path / ("a.tar.gz" if change == "gz" else "a.tar")
    with tarfile.open(file, "w") as archive:
        for name in names.get(change, ["0.png", "1.png"]):
            add(archive, name, encoded())
        if change == "link":
            link = tarfile.TarInfo("l.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
    if change == "cut":
        file.write_bytes(file.read_bytes()[: 512 + 4096 + 512 + 600])
    if change == "noise":
        file.write_bytes(b"x" * 10240)
    with pytest.raises((DataError, ConfigError), match=words):
        read(file, captions=[])


def test_parquet_names_what_is_wrong(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.Table.from_pylist([{"a": b"x", "b": b"y", "text": "t"}])
    parquet.write_table(table, tmp_path / "two.parquet")
    with pytest.raises(ConfigError, match=r"2 columns of pictures \(\['a', 'b'\]\).*name one in data\.picture"):
        read(tmp_path / "two.parquet")
    with pytest.raises(ConfigError, match=r"data\.picture: .* no column 'c' of pictures"):
        read(tmp_path / "two.parquet", picture="c")
    with pytest.raises(DataError, match=r"two\.parquet:0'?: not a picture"):
        read(tmp_path / "two.parquet", picture="a")
    parquet.write_table(
        arrow.Table.from_pylist([{"image": {"bytes": None, "path": "/etc/x.png"}}]), tmp_path / "l.parquet"
    )
    with pytest.raises(DataError, match="links to files are not followed"):
        read(tmp_path / "l.parquet", captions=[])
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "two.parquet").read_bytes()[:-9])
    with pytest.raises(DataError, match=r"cut\.parquet: not parquet, or damaged"):
        read(tmp_path / "cut.parquet")


def test_of_several_splits_one_must_be_given(tmp_path, encoded):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict(
        {"image": [{"bytes": encoded(), "path": None}], "text": ["a"]},
        features=datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")}),
    )
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "set")
    with pytest.raises(ConfigError, match=r"has the splits \['train', 'test'\]; give one, as .*train'"):
        read(tmp_path / "set")
    assert len(read(tmp_path / "set" / "train")) == 1


def test_sources_have_weights_and_settings_of_their_own(make_folder):
    one, two = make_folder(4, "one"), make_folder(6, "two")
    config = DataConfig(
        size=16,
        flip=True,
        sources=[
            {"path": str(one), "weight": 3, "wording": {"prefix": "old"}},
            {"path": str(two), "weight": 0.5, "flip": False, "loss_weight": 0.5},
        ],
    )
    data = ImageFolder(config, 7)
    assert data.pass_length == 15
    shown = [[data.row_of(n) for n in range(turn * 15, turn * 15 + 15)] for turn in range(2)]
    for rows in shown:
        assert sorted(row for row in rows if row < 4) == sorted(list(range(4)) * 3)
    assert sorted(row for rows in shown for row in rows if row >= 4) == list(range(4, 10))
    samples = [data.sample(n) for n in range(30)]
    assert all(s.caption.startswith("old ") == (s.row < 4) for s in samples)
    assert all(s.weight == (1.0 if s.row < 4 else 0.5) for s in samples)
    assert any(s.flipped for s in samples) and not any(s.flipped for s in samples if s.row >= 4)


def test_kohyas_folders_are_read_as_they_are(tmp_path, encoded):
    for folder, count in (("train/10_sks cat", 2), ("train/3_dog", 1), ("reg/1_cat", 5)):
        (tmp_path / folder).mkdir(parents=True)
        for k in range(count):
            (tmp_path / folder / f"{k}.png").write_bytes(encoded(seed=k))
    (tmp_path / "train/10_sks cat/0.txt").write_text("first line\nsecond line")
    (tmp_path / "train/10_sks cat/below").mkdir()
    (tmp_path / "train/10_sks cat/below/x.png").write_bytes(encoded())
    sources = [{"path": str(tmp_path / "train")}, {"path": str(tmp_path / "reg"), "regularisation": True}]
    data = ImageFolder(DataConfig(size=16, sources=sources), 7)
    assert [data.first_caption(row) for row in range(3)] == ["first line", "sks cat", "dog"]
    rows = [data.row_of(n) for n in range(data.pass_length)]
    assert data.pass_length == 46 and sum(row >= 3 for row in rows) == 23
    assert [rows.count(row) for row in range(3)] == [10, 10, 3]
    with pytest.raises(DataError, match="no folder with a name like `10_cat`"):
        ImageFolder(DataConfig(size=16, path=str(tmp_path / "train" / "3_dog"), layout="kohya"), 7)


KOHYA = """
[general]
enable_bucket = true
shuffle_caption = true
caption_extension = ".txt"
keep_tokens = 1

[[datasets]]
resolution = [32, 32]
batch_size = 4
bucket_reso_steps = 8
min_bucket_reso = 16
max_bucket_reso = 64

  [[datasets.subsets]]
  image_dir = "{root}/cats"
  num_repeats = 3
  class_tokens = "sks cat"
  flip_aug = true

  [[datasets.subsets]]
  is_reg = true
  image_dir = "{root}/reg"
  class_tokens = "cat"
  keep_tokens = 2
"""


def test_kohyas_file_is_read_as_it_is(tmp_path, encoded):
    for folder, count in (("cats", 2), ("reg", 2)):
        (tmp_path / folder).mkdir()
        for k in range(count):
            (tmp_path / folder / f"{k}.png").write_bytes(encoded((40, 30 + 20 * k), seed=k))
    (tmp_path / "cats/0.txt").write_text("sks cat, red, small\nnot read")
    (tmp_path / "set.toml").write_text(KOHYA.format(root=tmp_path))
    data = ImageFolder(DataConfig(path=str(tmp_path / "set.toml")), 7, batch=4)
    assert data.config.size == 32 and [data.size_of(row) for row in range(2)] == [(40, 24), (32, 32)]
    assert sum(group.count for group in data.order.groups if group.rows[0] < 2) == 6
    assert sum(group.count for group in data.order.groups if group.rows[0] >= 2) == 6
    shown = [n for n in range(data.pass_length) if data.row_of(n) >= 0]
    captions = {row: {data.caption_of(n, row) for n in shown if data.row_of(n) == row} for row in range(4)}
    assert captions[0] <= {"sks cat, red, small", "sks cat, small, red"} and captions[1] == {"sks cat"}
    assert captions[2] == {"cat"} and data.flips(0) and not data.flips(2)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("num_repeats", "num_repeat", r"'num_repeat' is not read here \(did you mean 'num_repeats'\?\)"),
        ("flip_aug = true", "color_aug = true", "color_aug = True has no counterpart here; set it to False"),
        ("[32, 32]", "'big'", "resolution: found 'big'"),
        ("enable_bucket = true", "enable_bucket = false\nresolution = [32, 48]", None),
        ("image_dir =", "metadata_file =", "'metadata_file' is not read here"),
        ("[general]", "[general", "not a readable TOML file"),
        ("[32, 32]", "[32]", r"resolution: found \[32\]; give a number of px, or \[width, height\]"),
        ("[32, 32]", "true", "resolution: found True"),
        ("max_bucket_reso = 64", "max_bucket_reso = 24", "max_side of 24 px is smaller than a size of 32 px"),
    ],
)
def test_what_of_kohyas_file_has_no_counterpart_is_refused(tmp_path, old, new, words):
    text = KOHYA.format(root=tmp_path).replace(old, new)
    (tmp_path / "set.toml").write_text(text if words else text.replace("resolution = [32, 32]\n", ""))
    with pytest.raises(ValueError, match=words or "32x48 is no square"):
        ImageFolder(DataConfig(path=str(tmp_path / "set.toml")), 7)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("general = 3", r"general: found 3; write it as a table, \[general\]"),
        ("[datasets]\nresolution = 32", r"datasets: found .*; write it as a list of tables, \[\[datasets\]\]"),
        ("datasets = ['a']", r"datasets: found \['a'\]; write it as a list"),
        ("[[datasets]]\nresolution = 32\n[datasets.subsets]\nimage_dir = 'a'", r"as .*, \[\[datasets\.subsets\]\]"),
    ],
)
def test_tables_of_kohyas_file_that_are_none_are_refused(tmp_path, text, words):
    (tmp_path / "set.toml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        parse_section(DataConfig, {"path": str(tmp_path / "set.toml")}, "data")


def test_a_quarantine_list_of_another_source_is_named(make_folder, tmp_path, caplog):
    folder, quarantine = make_folder(4), tmp_path / "list.txt"
    quarantine.write_text(f"{folder}\t1.png\tbroken\n/else/where\t3.png\n")
    assert len(read(f"{folder}/", quarantine=str(quarantine))) == 3, "a slash at the end is the same folder"
    assert "1 of 2 entries name pictures of '/else/where', which is no source of this run" in caplog.text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"path": ""}, "path.*at least 1 character"),
        ({"path": "x", "captions": {"text": 0.0, "alt": 1.0}}, r"captions.*: weights are above 0; leave out a field"),
        ({"path": "x", "captions": {}}, "captions.*: weights are above 0"),
        ({"path": "x", "weight": 1e12}, "weight.*less than or equal to 100000"),
        ({"sources": [{"path": "x", "loss_weight": 0.0}]}, "loss_weight is 0 everywhere"),
    ],
)
def test_values_that_cannot_be_are_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        parse_section(DataConfig, {"size": 16, **values}, "data")


def test_names_are_the_same_composed_and_decomposed(tmp_path, encoded):
    """Disks of macOS decompose the letters of names, tables and archives mostly do not."""
    (tmp_path / "cafe\u0301.png").write_bytes(encoded())
    (tmp_path / "caf\u00e9.txt").write_text("beside")
    assert read(tmp_path).first_caption(0) == "beside"
    row = {"file_name": "caf\u00e9.png", "text": "in a table"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    assert read(tmp_path).first_caption(0) == "in a table"


def test_a_url_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"https://example\.com/set'.*: a URL must name tars, or hf://datasets/"):
        read("https://example.com/set")
    with pytest.raises(DataError, match=r"cannot be opened: .*"):
        read("nothing://b/x.tar")


def test_a_url_whose_library_is_absent_is_named(monkeypatch):
    import fsspec

    def absent(*_):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(DataError, match=r"x\.tar': cannot be opened: Install s3fs to access S3"):
        read("s3://b/x.tar")


@pytest.mark.parametrize("first", ["txt", "json"])
def test_the_text_file_of_a_sample_wins_over_its_json(tmp_path, encoded, first):
    files = {"txt": b"of the file", "json": b'{"text": "of the json"}'}
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for ending in sorted(files, key=lambda ending: ending != first):
            add(archive, f"0.{ending}", files[ending])
        add(archive, "0.png", encoded())
    assert read(tmp_path / "a.tar").first_caption(0) == "of the file"


def test_a_sample_with_two_pictures_needs_to_be_told_which(tmp_path, encoded):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("0.jpg", "0.png"):
            add(archive, name, encoded())
    with pytest.raises(ConfigError, match=r"'0' has several pictures \(jpg, png\); name one in data\.picture"):
        read(tmp_path / "a.tar", captions=[])
    assert read(tmp_path / "a.tar", captions=[], picture="png").rows[0]["file_name"] == "0.png"


def test_a_quarantine_list_leaves_pictures_out(make_folder, tmp_path):
    folder = make_folder(4)
    (tmp_path / "list.txt").write_text(f"# made by doctor\n{folder}\t1.png\tbroken\n{folder}\t3.png\n")
    data = read(folder, quarantine=str(tmp_path / "list.txt"))
    assert [row["file_name"] for row in data.rows] == ["0.png", "2.png"]


def test_backslashes_of_a_table_part_folders(tmp_path, encoded):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(encoded())
    (tmp_path / "metadata.csv").write_text("file_name,text\na\\x.png,a cat\n")
    assert [row["file_name"] for row in read(tmp_path).rows] == ["a/x.png"]
    (tmp_path / "metadata.csv").write_text("file_name,text\nC:\\a\\x.png,a cat\n")
    with pytest.raises(DataError, match="lead out of the data set"):
        read(tmp_path)


def test_masks_beside_pictures_are_no_pictures(tmp_path, encoded):
    for name in ("a.png", "a.mask.png", "b.png", "b-masklabel.png", "c.mask.png"):
        (tmp_path / name).write_bytes(encoded())
    data = read(tmp_path, captions=[])
    assert [row["file_name"] for row in data.rows] == ["a.png", "b.png", "c.mask.png"]
    assert data.mask(0).mode == "L" and data.mask(2) is None
