"""Records in pictures that were made before stay readable, field by field; `records.json` holds one of each kind."""

import json
from pathlib import Path

import pytest

from latent_diffusion.options.call import Options
from latent_diffusion.options.option import declared
from latent_diffusion.options.tasks import RepaintingOptions
from latent_diffusion.pipeline.regenerate import plan_of_record
from latent_diffusion.provenance.record import Record

ROWS = json.loads((Path(__file__).parent / "records.json").read_text())


@pytest.mark.parametrize("name", ROWS)
def test_an_older_record_is_read_and_written_as_it_was(name):
    written = ROWS[name]["record"]
    assert json.loads(Record.from_json(json.dumps(written)).to_json()) == written


@pytest.mark.parametrize("name", ROWS)
def test_an_older_record_makes_the_same_call(name):
    plan = plan_of_record(Record.from_json(json.dumps(ROWS[name]["record"])))
    assert plan.method == ROWS[name]["method"]
    written = {key: value for key, value in ROWS[name]["arguments"].items() if value is not None}
    arguments = json.loads(json.dumps(dict(plan.arguments)))
    options = (*declared(Options), *declared(RepaintingOptions))
    newer = {
        option.name: option.default if option.before is ... else option.before
        for option in options
        if option.name not in written
    }
    assert arguments == written | {name: newer.get(name) for name in arguments if name not in written}
