"""The report of an examination as one HTML file, with the pictures inside: it can be sent and opened anywhere."""

import base64
import html
import io
import shlex

from PIL import Image

from latent_diffusion.data.checks.checking import decode_row
from latent_diffusion.data.settings import DataConfig
from latent_diffusion.errors import DataError
from latent_diffusion.training.doctor import Diagnosis

__all__ = ["report_page"]

SIDE = 128  # px of the longer side of a picture on the page
MOST = 24  # pictures of a kind
FIX = "latent-diffusion doctor {run} --fix bad.txt\nlatent-diffusion train {run} data.quarantine=bad.txt"
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin:2rem 0 .3rem}table{border-collapse:collapse}
td,th{text-align:left;padding:.2rem .8rem .2rem 0;vertical-align:top}.good{color:#176b2c}.bad{color:#a3200d}
.row{display:flex;flex-wrap:wrap;gap:.6rem;margin:.6rem 0}
figure{margin:0;width:130px;font-size:.75rem;overflow-wrap:anywhere}
img{max-width:128px;max-height:128px;border:1px solid #ccc}pre{background:#f4f4f4;padding:.8rem;white-space:pre-wrap}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#1b1b1b}pre{background:#2a2a2a}
.good{color:#7fd391}.bad{color:#ff9384}}
"""


def report_page(told: Diagnosis, config: DataConfig, run: str) -> str:
    """Return the page: what to mend first, then the plan and the pictures of each kind; `run` names the run's file."""
    title = f"Data of {run}"
    parts = [f"<h1>{html.escape(title)}</h1>"]
    heads = [
        f'<li><a href="#k{k}">{html.escape(head)}</a>: {html.escape(what)}</li>'
        for k, (head, what, _) in enumerate(told.faults)
    ]
    must, may = heads[: told.stopping], heads[told.stopping :]
    if must:
        parts += ['<p class="bad"><strong>To mend before the run can start</strong></p><ol>', *must, "</ol>"]
    if told.findings.broken:
        fix = html.escape(FIX.format(run=shlex.quote(run)))
        parts.append(f"<p>To train without the broken pictures, which stay where they are:</p><pre>{fix}</pre>")
    if may:
        parts += ["<p><strong>To look at; the run can start as it is</strong></p><ol>", *may, "</ol>"]
    if not heads:
        parts.append('<p class="good"><strong>Nothing to mend in the data.</strong></p>')
    parts.append("<h2>The data</h2><table>")
    parts += [f"<tr><th>{html.escape(head)}</th><td>{html.escape(what)}</td></tr>" for head, what in told.facts]
    parts.append("</table>")
    if told.plan or told.memory or told.measured:
        lines = "\n".join([*told.plan, *told.memory, *told.measured])
        parts.append(f"<h2>The run</h2><pre>{html.escape(lines)}</pre>")
    for k, (head, what, which) in enumerate(told.faults):
        parts.append(f'<h2 id="k{k}">{html.escape(head)}</h2><p>{html.escape(what)}</p><div class="row">')
        twins = told.twins.get(k)
        for place, one in enumerate(which[:MOST]):
            parts.append(_figure(told, config, one))
            if twins is not None:  # side by side, so that one can choose
                same = (
                    "the same file as"
                    if told.findings.pictures[twins[place]].content == told.findings.pictures[one].content
                    else "looks like"
                )
                parts.append(_figure(told, config, twins[place], f"{same} the one before"))
        parts.append("</div>")
        if len(which) > MOST:
            parts.append(f"<p>and {len(which) - MOST} more</p>")
    page = "\n".join(parts)
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>{page}</body></html>\n'


def _figure(told: Diagnosis, config: DataConfig, place: int, note: str = "") -> str:
    """Return one picture with its name, size and fault."""
    one = told.findings.pictures[place]
    words = [html.escape(one.name)]
    if one.size is not None:
        words.append(f"{one.size[0]}x{one.size[1]} px")
    mask = f"its mask: {one.mask_fault}" if one.mask_fault else ""
    fault = one.fault.removeprefix(f"{f'{one.where}/{one.name}'!r}: ").removeprefix(f"{one.name!r}: ")
    words += [html.escape(line) for line in (fault, mask, note) if line]
    picture = ""
    if one.size is not None:
        part = told.findings.parts[one.part]
        try:
            shown, _ = decode_row(part, one.row, part.read(one.row), config)
        except DataError as error:  # it changed since
            words.append(html.escape(str(error)))
        else:
            picture = f'<img alt="{html.escape(one.name)}" src="data:image/jpeg;base64,{_small(shown)}">'
    return f"<figure>{picture}<figcaption>{'<br>'.join(words)}</figcaption></figure>"


def _small(picture: Image.Image) -> str:
    picture.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85)
    return base64.b64encode(stream.getvalue()).decode()
