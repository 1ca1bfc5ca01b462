"""Detectors: what they fire on and what not, how one is added, and how their finds move what is drawn."""

import importlib
from pathlib import Path

import pytest

from neuralforge.data import detectors
from neuralforge.data.detectors import Detector, by_pattern, find_detectors, known_detectors, register
from neuralforge.data.example import Example
from neuralforge.data.focus import FOCUSED, OTHER, focus_on
from neuralforge_common.errors import ConfigError

FIRES = [
    ("annotations", "java", "    @Override\n    public void run() {"),
    ("annotations", "python", "    @property\n    def x(self): ..."),
    ("annotations", "c#", "    [Required]\n    public string Name;"),
    ("annotations", "rust", "#[derive(Debug)]\nstruct A;"),
    ("dependency_injection", "java", "  @Autowired private Repo repo;"),
    ("dependency_injection", "c#", "services.AddScoped<IRepo, Repo>();"),
    ("dependency_injection", "python", "def get(db=Depends(session)):"),
    ("rest_mappings", "java", '@GetMapping("/users/{id}")'),
    ("rest_mappings", "kotlin", "@RestController\nclass A"),
    ("rest_mappings", "python", '@app.get("/users")'),
    ("rest_mappings", "javascript", "router.post('/x', f)"),
    ("ownership_patterns", "rust", "fn f(v: &mut Vec<u8>) {"),
    ("ownership_patterns", "rust", "let a = Arc::new(1);"),
    ("ownership_patterns", "rust", "struct A<'a> { x: &'a str }"),
    ("ownership_patterns", "c++", "auto p = std::move(q);"),
    ("error_handling", "rust", "let x = read(p)?;"),
    ("error_handling", "rust", "fn f() -> Result<(), E> {"),
    ("error_handling", "go", "if err != nil {"),
    ("error_handling", "python", "    except ValueError:"),
    ("error_handling", "java", "} catch (IOException e) {"),
    ("trait_implementations", "rust", "impl<T: Clone> Iterator for Walk<T> {"),
]

SILENT = [
    ("annotations", "java", "/** @param x the number\n * @return it */ int f(int x) {"),
    ("annotations", "java", " * @see Other\n int x;"),
    ("annotations", "java", 'String mail = "me@Example.org";'),
    ("annotations", "java", "public @interface Marker {}"),
    ("annotations", "python", "c = a @ b"),
    ("dependency_injection", "java", "// @Autowired no longer"),
    ("rest_mappings", "java", "int getMapping() {"),
    ("rest_mappings", "python", "# @app.get(x)"),
    ("ownership_patterns", "rust", "let x = a & b;"),
    ("error_handling", "python", "retry: int = 3"),
    ("error_handling", "java", 'log("try again");'),
    ("trait_implementations", "rust", "impl Walk { fn f() { for i in 0..3 {} } }"),
    ("trait_implementations", "java", "class A implements B {}"),
]


def _example(language: str, completion: str, context: str = "") -> Example:
    return Example(context=context, completion=completion, language=language)


@pytest.mark.parametrize(("name", "language", "code"), FIRES)
def test_a_detector_fires_on_its_feature(name: str, language: str, code: str) -> None:
    assert known_detectors()[name].fires(_example(language, code))


@pytest.mark.parametrize(("name", "language", "code"), SILENT)
def test_a_detector_is_silent_on_what_only_looks_like_it(name: str, language: str, code: str) -> None:
    assert not known_detectors()[name].fires(_example(language, code))


def test_only_what_is_learnt_counts() -> None:
    assert not known_detectors()["annotations"].fires(_example("java", "int x;", context="@Override\n"))


def test_hostile_text_takes_no_time() -> None:
    for text in ("impl " * 20_000, "/*" * 50_000, '"' + "\\" * 100_000, "@" * 100_000, "& " * 50_000, "#" * 100_000):
        for language in ("rust", "java", "python"):
            for detector in known_detectors().values():
                detector.fires(_example(language, text))


def test_an_unknown_name_gets_the_nearest_and_all_are_told() -> None:
    with pytest.raises(ConfigError) as caught:
        find_detectors(["anotations", "annotations", "zzz"])
    assert caught.value.faults == (
        "no detector is called 'anotations', did you mean 'annotations'?",
        "no detector is called 'zzz'",
    )
    assert "rest_mappings" in caught.value.hint


def test_a_detector_can_be_added_and_no_name_is_taken_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectors, "_REGISTERED", dict(detectors._REGISTERED))
    mine = register(Detector(name="sql", about="queries", fires=by_pattern({"python": r"\bSELECT\b"})))
    assert find_detectors(["sql", "sql"]) == (mine,)
    with pytest.raises(ConfigError, match="two detectors are called 'sql'"):
        register(Detector(name="sql", about="others", fires=lambda example: True))


def test_an_installed_package_can_bring_detectors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "their_detectors.py").write_text(
        "from neuralforge.data.detectors import Detector\n"
        "LONG = Detector(name='long', about='long ones', fires=lambda e: len(e.completion) > 9)\nWRONG = 3\n"
    )
    about = tmp_path / "theirs-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[neuralforge.detectors]\nlong = their_detectors:LONG\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    (found,) = find_detectors(["long"])
    assert found.fires(_example("", "x" * 10))
    (about / "entry_points.txt").write_text("[neuralforge.detectors]\nlong = their_detectors:WRONG\n")
    with pytest.raises(ConfigError, match="got int, wanted Detector"):
        known_detectors()


def test_a_focused_example_is_drawn_weight_times_as_often() -> None:
    examples = [_example("java", "@A int x;"), _example("java", "int x;"), _example("java", "int y;")]
    focus = focus_on(examples, find_detectors(["annotations", "rest_mappings"]), weight=3)
    assert focus.groups == (FOCUSED, OTHER, OTHER)
    assert focus.found == {"annotations": 1, "rest_mappings": 0}
    each = {FOCUSED: focus.shares[FOCUSED] / 1, OTHER: focus.shares[OTHER] / 2}
    assert each[FOCUSED] == pytest.approx(3 * each[OTHER])
    assert focus_on(examples[1:], find_detectors(["annotations"]), weight=3).shares == {}
    assert focus_on(examples[:1], find_detectors(["annotations"]), weight=3).shares == {}
