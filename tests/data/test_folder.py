import itertools
import json
import os
import zipfile

import pytest
import torch

from latent_diffusion.data.batches.folder import DataConfig, ImageFolder
from latent_diffusion.data.batches.loader import batches
from latent_diffusion.errors import ConfigError, DataError


def read(folder, **settings) -> ImageFolder:
    return ImageFolder(DataConfig(path=str(folder), size=16, **settings), seed=7)


def lines(folder, *rows) -> None:
    (folder / "metadata.jsonl").write_bytes(
        b"\n".join(r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows)
    )


def test_a_zip_reads_as_its_folder(make_folder, tmp_path):
    folder = make_folder()
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write(folder, "top")
        for file in sorted(folder.iterdir()):
            archive.write(file, f"top/{file.name}")
    one, two = read(folder), read(tmp_path / "set.zip")
    assert one.rows == two.rows and one.digest == two.digest
    for number in range(12):
        a, b = one.sample(number), two.sample(number)
        assert (a.row, a.caption) == (b.row, b.caption) and torch.equal(a.image, b.image)


def test_without_a_table_text_files_are_the_captions(tmp_path, encoded):
    (tmp_path / "b.png").write_bytes(encoded())
    (tmp_path / "b.txt").write_bytes("\ufeffa thing\r\n".encode())
    assert read(tmp_path).sample(0).caption == "a thing"


def test_every_epoch_shows_every_picture_once_in_its_own_order(make_folder):
    data = read(make_folder(20))
    epochs = [[data.row_of(epoch * 20 + k) for k in range(20)] for epoch in range(3)]
    assert all(sorted(rows) == list(range(20)) for rows in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[1] == [read(data.config.path).row_of(20 + k) for k in range(20)]


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_order_and_draws_do_not_depend_on_workers_or_shares(make_folder, workers):  # D32
    data = read(make_folder(9), captions=["text", "text_alt"], caption_dropout=0.3, flip=True, missing_captions="empty")
    whole = [data.sample(n) for n in range(32)]
    shares = [
        list(batches(data, ([step * 8 + rank * 4 + k for k in range(4)] for step in range(4)), workers))
        for rank in range(2)
    ]
    for step, rank in itertools.product(range(4), range(2)):
        batch = shares[rank][step]
        for k, number in enumerate(batch.sample):
            assert number == step * 8 + rank * 4 + k
            assert batch.row[k] == whole[number].row and batch.captions[k] == whole[number].caption
            assert torch.equal(batch.images[k], whole[number].image.float() / 127.5 - 1)


def test_pictures_kept_in_memory_equal_pictures_decoded_in_turn(make_folder):
    folder = make_folder()
    kept, decoded = read(folder), read(folder, cache_bytes=0)
    assert decoded._cache is None
    assert all(torch.equal(kept.sample(n).image, decoded.sample(n).image) for n in range(5))


def test_caption_dropout_and_choice_have_their_shares(make_folder):
    data = read(make_folder(5, text_alt=["x", "y"]), captions=["text", "text_alt"], caption_dropout=0.2)
    drawn = [data.caption_of(n, data.row_of(n)) for n in range(4000)]
    assert abs(drawn.count("") / 4000 - 0.2) < 0.03
    assert abs((drawn.count("x") + drawn.count("y")) / 4000 - 0.4) < 0.03


def test_filters(make_folder):
    folder = make_folder()
    assert len(read(folder, where={"split": "train"})) == 4
    assert len(read(folder, where_not={"split": ["train"]})) == 1
    with pytest.raises(DataError, match="5 rows, 0 after split in \\['val'\\]"):  # D27: the arithmetic
        read(folder, where={"split": "val"})
    with pytest.raises(ConfigError, match="did you mean 'split'"):
        read(folder, where={"splt": "val"})


def test_what_is_left_out_of_training_can_be_held_out(make_folder):
    folder = make_folder()
    names = sorted(str(row["file_name"]) for row in read(folder).rows)
    apart = {"file_name": names[:2]}
    for config in (
        DataConfig(path=str(folder), size=16, where_not=apart),
        DataConfig(size=16, sources=[{"path": str(folder), "where_not": apart}]),  # pyright: ignore[reportArgumentType]
        DataConfig(size=16, where_not=apart, sources=[{"path": str(folder)}]),  # pyright: ignore[reportArgumentType]
    ):
        trained, held = ImageFolder(config, seed=7), ImageFolder(config.held_out(apart), seed=7)
        assert len(trained) == len(names) - 2 and len(held) == 2
    of_another_field = DataConfig(path=str(folder), size=16, where_not={"split": "test"}).held_out(apart)
    assert len(ImageFolder(of_another_field, seed=7)) == 1


def test_all_bad_pictures_are_named_before_training(make_folder, encoded):  # D01, D06
    folder = make_folder()
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:200])
    (folder / "3.png").write_bytes(encoded((1, 300)))
    with pytest.raises(DataError, match="2 of 5 pictures") as caught:
        read(folder)
    assert "1.png" in str(caught.value) and "3.png" in str(caught.value) and "1x300" in str(caught.value)
    assert caught.value.exit_code == 3
    with pytest.raises(DataError, match="max_bad"):
        read(folder, on_bad="skip")
    assert len(read(folder, on_bad="skip", max_bad=0.5)) == 3


def test_rows_without_a_picture_are_counted(make_folder):  # D14
    folder = make_folder()
    lines(folder, {"file_name": "0.png", "text": "a"}, *({"file_name": f"no{k}.png", "text": "b"} for k in range(12)))
    with pytest.raises(DataError, match=r"12 of 13 rows.*'no9\.png', \.\.\."):
        read(folder)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"file_name": "0.png", "text": "caf\xe9"}', "byte"),
        (b'{"file_name": "0.png", "text": "a\\ud800"}', "lone surrogate"),
        (b'{"file_name": "0.png", "text": "a\\u0000"}', "NUL"),
        (b'{"file_name": "0.png", "text": 3}', "found int"),
        (b'{"file_name": "0.png", "text": {"a": 1}}', "found dict"),
        (b'{"file_name": "0.png", "text": []}', "empty list"),
        (b'{"file_name": "0.png", "text": null}', "no caption"),
        (b'{"file_name": "0.png", "text": "  "}', "no caption"),
        (b'{"file_name": "0.png", "te', "metadata.jsonl:2: not a JSON object"),
        (b'{"file_name": "0.png", "text": "a",}', "metadata.jsonl:2"),
        (b'{"file_name": "0.png", "strong": NaN, "text": "a"}', "metadata.jsonl:2: NaN"),
        (b'{"file_name": "0.png", "file_name": "1.png", "text": "a"}', "'file_name' appears twice"),
        (b'["0.png"]', "found list"),
        (b'{"text": "a"}', "`file_name` must be"),
    ],
)
def test_broken_rows_are_named(make_folder, line, words):  # D15, D16, D18, D20
    folder = make_folder()
    first = {"file_name": "1.png", "text": "some caption"}
    lines(folder, first, line)
    if "byte" in words:
        words = rf"metadata.jsonl:2: byte {len(json.dumps(first)) + 1 + line.index(0xE9)} \(0xe9\)"
    with pytest.raises(DataError, match=words):
        read(folder)


def test_byte_order_mark_line_ends_and_blank_lines_are_fine(make_folder):  # D16, D20
    folder = make_folder()
    (folder / "metadata.jsonl").write_bytes(b'\xef\xbb\xbf{"file_name": "0.png", "text": " a  b "}\r\n\r\n\n')
    assert read(folder).sample(0).caption == "a b"


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png"])
def test_names_that_lead_out_are_refused(make_folder, tmp_path, name, encoded):  # D22
    (tmp_path / "secret.png").write_bytes(encoded())
    folder = make_folder()
    lines(folder, {"file_name": name, "text": "a"})
    with pytest.raises(DataError, match="out of the data set"):
        read(folder)


def test_links_that_lead_out_are_refused(make_folder, tmp_path, encoded):  # D22
    (tmp_path / "secret.png").write_bytes(encoded())
    folder = make_folder()
    (folder / "0.png").unlink()
    os.symlink(tmp_path / "secret.png", folder / "0.png")
    with pytest.raises(DataError, match="outside the data set"):
        read(folder)


def test_archives_with_names_that_lead_out_are_refused(tmp_path, encoded):  # D28
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../evil.png", encoded())
    with pytest.raises(DataError, match="out of the data set"):
        read(tmp_path / "evil.zip")
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="is a link"):
        read(tmp_path / "link.zip")


def test_damaged_archives_and_wrong_paths(make_folder, tmp_path, encoded):
    (tmp_path / "no.zip").write_bytes(b"not a zip")
    for path in (tmp_path / "no.zip", tmp_path / "absent", tmp_path / "no.zip" / "x"):
        with pytest.raises(DataError):
            read(path)
    with zipfile.ZipFile(tmp_path / "cut.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.png", encoded())
        archive.writestr("a.txt", "a")
    data = bytearray((tmp_path / "cut.zip").read_bytes())
    data[200] ^= 255
    (tmp_path / "cut.zip").write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"a\.png"):
        read(tmp_path / "cut.zip")


def test_an_empty_folder_says_so(tmp_path):  # D27
    with pytest.raises(DataError, match="0 pictures"):
        read(tmp_path)


def test_a_fifo_does_not_hang(make_folder):  # D23
    folder = make_folder()
    (folder / "0.png").unlink()
    os.mkfifo(folder / "0.png")
    with pytest.raises(DataError, match="not a regular file"):
        read(folder)


def test_a_picture_damaged_between_scan_and_use_is_named(make_folder):  # D26
    folder = make_folder()
    data = read(folder, cache_bytes=0)
    for file in folder.glob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match=r"\d\.png"):
        list(batches(data, [[0, 1]], workers=1))
