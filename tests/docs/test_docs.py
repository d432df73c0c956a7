"""The documentation holds: its code runs, its names exist, its YAML is valid, its links lead somewhere.

Every python block of a tutorial or how-to is run, page by page in one namespace, unless the line before it says
`<!-- not run: reason -->`. A block with a title is a file of that name; the tests in such a file are run.
`tiny-latte` is a random pipeline here.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pipelines import random_latte

import fsframework as fsf
import fsframework.models  # fills the registries
import fsframework.policies
from fsframework.config.load import load_config
from fsframework.core import ADAPTERS, POLICIES, Checkpoint, LoadedModel
from fsframework.core.trace import COLUMNS
from fsframework.metrics import METRICS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FENCE = re.compile(r"^( *)```(\S*)([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: .+ -->\n\s*$")
LINK = re.compile(r"(?<!`)!?\[[^\]]*\]\(([^)\s]+)\)")

pytestmark = pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str | None
    text: str
    is_run: bool


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in FENCE.finditer(text):
        indent, language, options, body = found.groups()
        title = re.search(r'title="([^"]+)"', options)
        body = re.sub(f"(?m)^{indent}", "", body)
        yield Block(language or "", title and title.group(1), body, NOT_RUN.search(text[: found.start()]) is None)


def name_of(page: Path) -> str:
    return str(page.relative_to(DOCS))


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("gen_reference", DOCS / "gen_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tiny_model():
    """What the pages call tiny-latte: random, 10 steps of 16 x 16 pixels, also when the pipeline is called directly."""
    from fsframework.models import Latte

    pipe = random_latte()
    call_quickly.__signature__ = inspect.signature(type(pipe).__call__)
    pipe.__class__ = type("LattePipeline", (type(pipe),), {"__call__": call_quickly})
    checkpoint = Checkpoint("random", num_steps=10, guidance_scale=4.0, height=16, width=16, num_frames=8)
    return LoadedModel("tiny-latte", Latte(), pipe, checkpoint, "random")


def call_quickly(pipe, prompt, num_inference_steps=10, video_length=8, height=16, width=16, **more):
    steps = min(num_inference_steps, 10)
    sizes = dict(video_length=video_length, height=height, width=width)
    return super(type(pipe), pipe).__call__(prompt, num_inference_steps=steps, **sizes, **more)


@pytest.fixture
def registries():
    """Whatever a page registers is forgotten after it."""
    before = [dict(registry._entries) for registry in (POLICIES, ADAPTERS)]
    yield
    for registry, entries in zip((POLICIES, ADAPTERS), before):
        registry._entries.clear()
        registry._entries.update(entries)


RUN_PAGES = [p for p in PAGES if any(b.language == "python" and b.is_run for b in blocks_of(p))]


@pytest.mark.parametrize("page", RUN_PAGES, ids=name_of)
def test_the_code_of_a_page_runs(page, tiny_model, registries, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fsframework.models.loading.load_model", lambda name, **options: tiny_model)
    torch.manual_seed(0)
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks_of(page):
        if block.title:
            (tmp_path / block.title).write_text(block.text)
        elif block.language == "python" and block.is_run:
            exec(compile(block.text, name_of(page), "exec"), namespace)
    for file in tmp_path.glob("test_*.py"):
        tests: dict[str, Any] = {"__name__": file.stem, "__file__": str(file)}
        exec(compile(file.read_text(), str(file), "exec"), tests)
        for name in [name for name in tests if name.startswith("test_")]:
            tests[name]()


def test_tutorials_and_how_tos_have_code_that_runs():
    assert {name_of(p) for p in RUN_PAGES} >= {
        "index.md",
        "tutorials/first-policy.md",
        "how-to/your-own-pipeline.md",
        "how-to/write-an-adapter.md",
    }


@pytest.fixture(scope="module")
def first_policy_run(tiny_model, tmp_path_factory):
    """The run directory of the tutorial's policy, through its own YAML file."""
    from fsframework.run.runner import run

    here = tmp_path_factory.mktemp("first-policy")
    for block in blocks_of(DOCS / "tutorials" / "first-policy.md"):
        if block.title:
            (here / block.title).write_text(block.text)
    sampling = "sampling={num_steps: 8, num_frames: 8, height: 16, width: 16}"
    before = dict(POLICIES._entries)
    quick = ["metrics=[psnr]", "tracking.wandb=disabled", f"output.runs_dir={here / 'runs'}"]
    yield run(load_config(here / "run.yaml", [sampling, *quick]), tiny_model)
    POLICIES._entries.clear()
    POLICIES._entries.update(before)


def test_the_first_policy_runs_through_its_yaml_file(first_policy_run):
    metrics = json.loads((first_policy_run / "metrics.json").read_text())
    assert metrics["policy"] == "middle"
    assert metrics["reuse_fraction"]["mean"] == 2 / 4 * 2 / 8  # 4 blocks: the middle two; steps 4 and 6 of 8


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_of_fsf_exist(page):
    for name in set(re.findall(r"\bfsf\.([A-Za-z_]+)", page.read_text())):
        assert hasattr(fsf, name), f"{name_of(page)}: fsf.{name}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_dotted_names_of_the_package_exist(page):
    for name in set(re.findall(r"\bfsframework(?:\.[A-Za-z_]\w*)+", page.read_text())):
        if not name.endswith((".py", ".yaml")):
            assert exists(name), f"{name_of(page)}: {name}"


def exists(dotted: str) -> bool:
    from importlib import import_module

    names = dotted.split(".")
    for count in range(len(names), 0, -1):
        try:
            found: Any = import_module(".".join(names[:count]))
        except ImportError:
            continue
        for name in names[count:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_yaml_blocks_are_configs(page, tmp_path):
    (tmp_path / "policy.py").write_text("")
    for block in blocks_of(page):
        if block.language == "yaml" and block.is_run:
            file = tmp_path / "run.yaml"
            file.write_text(block.text)
            load_config(file)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_overrides_on_command_lines_are_known_keys(page):
    for block in blocks_of(page):
        for line in block.text.replace("\\\n", " ").splitlines() if block.language == "bash" else ():
            words = re.findall(r'"[^"]*"|\S+', line.split("#")[0])
            if words[:2] == ["fsf", "run"]:
                overrides = [word.strip('"') for word in words[3:]]
                load_config(None, [o for o in overrides if not o.startswith("-")])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text())
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), f"{name_of(page)}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{name_of(page)}: {target}"


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"(?m)^#+ (.+)$", generator().fill(FENCE.sub("", page.read_text())))
    return {re.sub(r"[^\w\s-]", "", t).strip().lower().replace(" ", "-") for t in titles}


def test_the_config_shown_in_the_first_run_is_the_one_that_is_run():
    shown = next(b.text for b in blocks_of(DOCS / "tutorials" / "first-run.md") if b.language == "yaml")
    file = (ROOT / "experiments" / "quickstart" / "run.yaml").read_text()
    assert shown == "".join(line for line in file.splitlines(keepends=True) if not line.startswith("#"))


def test_every_page_is_in_the_navigation():
    nav = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text())
    assert sorted(nav) == sorted(name_of(page) for page in PAGES)


@pytest.mark.parametrize(
    "part", ["policy_overview", "policies", "config", "columns", "decisions", "parts", "metrics", "models", "commands"]
)
def test_every_generated_part_is_on_a_page(part):
    assert any(f"<!-- generated: {part} -->" in page.read_text() for page in PAGES)


BUILT_IN = {name: cls for name, cls in POLICIES.items() if cls.__module__.startswith("fsframework.")}


def test_the_policies_page_holds_every_policy_with_every_option():
    import dataclasses

    text = generator().policies()
    for name, policy_class in BUILT_IN.items():
        section = text.split(f"## {name}\n")[1].split("\n## ")[0]
        for option in dataclasses.fields(policy_class):
            if option.name not in INHERITED or option.name in policy_class.__annotations__:
                assert f"`{option.name}`" in section, f"{name}.{option.name}"
        for model in policy_class.published:
            assert f"| `{model}` |" in section or (model == "" and "| any other |" in section)
    assert text.count("host reads per step") == len(re.findall(r"(?m)^## ", text)) == len(BUILT_IN)


INHERITED = ("storage", "depth", "gate", "eliminate_dead")


def test_the_overview_has_a_row_for_every_policy_in_a_group_that_says_what_kind_it_is():
    reference = generator()
    rows = re.findall(r"(?m)^\| \[`(\w+)`\]\(#(\w+)\) \|(.*)$", reference.policy_overview())
    assert sorted(name for name, _, _ in rows) == sorted(BUILT_IN)
    named = [name for _, names in reference.GROUPS.values() for name in names]
    assert len(named) == len(set(named))
    assert set(BUILT_IN) <= set(named), "say in docs/gen_reference.py what kind of policy it is"
    for name, anchor, cells in rows:
        assert anchor == name
        signal, paper = (cell.strip() for cell in (cells.split(" | ")[4], cells.split(" | ")[7]))
        assert signal == (BUILT_IN[name].signal or "-")
        assert paper == (reference.linked(BUILT_IN[name].paper) or "-")


def test_the_overview_states_the_memory_and_the_host_reads_that_are_declared():
    reference = generator()

    def cells(name):
        row = next(line for line in reference.policy_overview().splitlines() if line.startswith(f"| [`{name}`]"))
        return [cell.strip() for cell in row.split(" | ")]

    # Static keeps the last block's output; Foresight every block's, and reads its distances once a step.
    assert cells("static")[1:5] + cells("static")[6:8] == ["block", "output", "1", "1", "0", "no"]
    assert cells("foresight")[1:5] + cells("foresight")[6:8] == ["block", "output", "56", "30", "at most 1", "no"]
    assert cells("full")[2:5] == ["nothing", "0", "0"]


def test_sources_become_links():
    linked = generator().linked
    assert linked("FORA, arXiv:2407.01425") == "FORA, [arXiv:2407.01425](https://arxiv.org/abs/2407.01425)"
    assert (
        linked("see github.com/Shenyi-Z/ToCa.") == "see [github.com/Shenyi-Z/ToCa](https://github.com/Shenyi-Z/ToCa)."
    )


def test_the_config_page_holds_every_key_with_its_meaning():
    from fsframework.config.load import to_dict
    from fsframework.config.schema import RunConfig

    rows = re.findall(r"(?m)^\| `([\w.]+)` \|.*\| (.*) \|$", generator().config())
    tree = to_dict(RunConfig())
    keys = {f"{k}.{n}" for k, v in tree.items() if isinstance(v, dict) and k != "policy" for n in v}
    keys |= {k for k, v in tree.items() if not isinstance(v, dict)} | {"policy"}
    assert {key for key, _ in rows} == keys
    assert all(meaning for _, meaning in rows)


def test_the_trace_page_holds_every_column():
    text = generator().fill((DOCS / "reference" / "trace.md").read_text())
    assert all(f"| `{name}` |" in text for name in COLUMNS)


def test_the_run_directory_page_names_every_file_and_key(first_policy_run):
    folder = first_policy_run
    page = (DOCS / "reference" / "run-directory.md").read_text()
    names = [path.name for path in folder.iterdir()]
    names += ["wandb", *(name for _, metric in METRICS.items() for name in metric.value_names())]
    names += json.loads((folder / "metrics.json").read_text())
    names += json.loads((folder / "videos.jsonl").read_text().splitlines()[0])
    names += json.loads((folder / "environment.json").read_text())
    missing = [name for name in names if f"`{name}`" not in page and f"`{name}/`" not in page]
    assert not missing


def test_a_picture_is_shown_once_it_is_there(tmp_path):
    reference = generator()
    reference.DOCS = tmp_path
    marker = "<!-- picture: assets/demo.webp | Two videos -->"
    assert reference.fill(marker) == ""
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "demo.webp").touch()
    assert reference.fill(marker) == "![Two videos](assets/demo.webp)"


def test_the_docs_need_no_other_host():
    text = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in text
    for page in PAGES:
        assert not re.search(r"(src|href)=\"https?:", page.read_text())
