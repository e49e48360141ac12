"""A kill while the files of a finished adapter are written leaves nothing half-written, and the next start finishes."""

import json
import shutil
import signal

import real
from processes import train


def test_a_kill_within_the_result_leaves_no_part_of_it(pictures, tiny_folder, tmp_path):
    adapter = {"rank": 1, "layers": ["mid_block.*attn2.to_v"]}
    config, output, whole = tmp_path / "run.yaml", tmp_path / "style", tmp_path / "whole"
    run = {
        "output": "unused", "steps": 1, "batch_size": 1, "threads": 1, "trackers": [],
        "objective": {"name": "lora", "init": str(tiny_folder), "adapter": adapter},
        "data": {"path": str(pictures), "size": 32, "where": {"split": "train"}},
    }  # fmt: skip
    config.write_text(json.dumps(run))
    assert train(output, str(config), run=real.run) == 0
    shutil.move(output / "model", whole)
    for fault in (
        ("within an adapter's file", 0),
        ("within an adapter's file", 1),
        ("before the result has its name", 0),
    ):
        assert train(output, str(config), run=real.run, fault=fault) == -signal.SIGKILL, fault
        assert not (output / "model").exists(), fault
    assert train(output, str(config), run=real.run) == 0
    names = sorted(path.name for path in whole.iterdir())
    assert {"style.safetensors", "pytorch_lora_weights.safetensors"} <= {*names}
    assert sorted(path.name for path in (output / "model").iterdir()) == names
    assert [n for n in names if (output / "model" / n).read_bytes() != (whole / n).read_bytes()] == []
    assert list(output.glob(".tmp-*")) == []
