"""Training configs at random: LLaMA-Factory's own examples, with mistakes in them that people make, and worse ones."""

from __future__ import annotations

import itertools
import random
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from sifkit.check.facts import Argument, ImageFacts
from sifkit.check.parser import Device
from sifkit.check.parser_steps import Step, steps_of
from sifkit.gather.config import Case

ODD = (
    *(
        "null",
        "true",
        "false",
        "yes",
        "no",
        '"no"',
        "0",
        "1",
        "-1",
        "2",
        "4",
        "8",
        "0.5",
        "1.5",
        "2.0",
        "1e-4",
        "1.0e-4",
    ),
    *("1e4", ".inf", "-.inf", ".nan", "text", '"1"', '"true"', '""', "[]", "[1, 2]", "[a]", "{}", "{a: 1}", "{1: a}"),
    *(
        "180000000",
        "99999999999999999999",
        "2020-01-01",
        "1:30",
        "0x10",
        "1_000",
        "${a}",
        "'${a}'",
        "???",
        "~",
        "a,b,c",
    ),
    *(
        """'{"a": "1"}'""",
        """'{bad'""",
        "0.5,0.5",
        "x: y",
        "!!binary aGVsbG8=",
        "!!set {a}",
        "*a",
        "&a 1",
        "|\n  a\n  b",
    ),
    *(
        "${oc.env:HOME}",
        "${",
        "${a",
        "'\\ud83d'",
        "0b_",
        "-",
        "'a: b'",
        "full_shard",
        "auto_wrap offload",
        "all",
        "none",
        "[all]",
    ),
)
MAPPINGS = (
    *(
        "{min_num_params: 1}",
        "{fsdp_min_num_params: 1, transformer_layer_cls_to_wrap: A}",
        "{version: 2}",
        "{version: x}",
    ),
    *(
        "{transformer_layer_cls_to_wrap: [A, 1]}",
        "{use_orig_params: maybe}",
        "{forward_prefetch: 1}",
        "{backward_prefetch: 1}",
    ),
    *("{sync_module_states: false, cpu_ram_efficient_loading: true}", "{cpu_ram_efficient_loading: x}", "{xla: true}"),
    *("{split_batches: true}", "{use_configured_state: true}", "{nope: 1}", "{reshard_after_forward: x, version: 2}"),
    *(
        "examples/accelerate/fsdp_config.yaml",
        "examples/deepspeed/ds_z3_config.json",
        "nowhere.json",
        '{"min_num_params": "x"}',
    ),
)
# Each comes near one refusal of the parser that chance alone seldom meets. With a line left out, it is accepted or not.
NEAR = Path(__file__).with_name("parser_near.txt").read_text(encoding="utf-8").strip().split("\n\n")
GOOD = {  # accepted, and short: what a line of NEAR does to it, it does alone
    "model_name_or_path": "a",
    "do_train": "true",
    "dataset": "a",
    "template": "llama3",
    "output_dir": "saves/near",
    "report_to": "none",
}
ASKS_THE_HUB = "push_to_hub_model_id"  # the parser looks the name up on the hub, which no one can foretell


def seeds(checkout: Path) -> tuple[str, ...]:
    """Texts of the examples that train."""
    found = (path.read_text(encoding="utf-8") for path in sorted((checkout / "examples").rglob("*.y*ml")))
    return tuple(text for text in found if "\nstage:" in text and "model_name_or_path:" in text)


def cases(count: int, seed: int, image: ImageFacts, checkout: Path) -> Iterator[Case]:
    """So many, the same for the same seed; first the examples as they are, then each of NEAR on its own."""
    chance = random.Random(seed)
    texts = seeds(checkout)
    steps = list(_all_steps(image))
    drawn = (_case(chance.choice(texts), chance, image, steps) for _ in itertools.count())
    plain = (Case(text, (), Device(gpu=True)) for text in texts)
    yield from itertools.islice(itertools.chain(plain, _near_alone(chance), drawn), count)


def _all_steps(image: ImageFacts) -> Iterator[Step]:
    for section in ("model", "data", "ray", "finetuning", "checks"):
        yield from steps_of("llamafactory.yaml", section)
    yield from steps_of(
        "transformers-5.yaml" if image.transformers.startswith("5") else "transformers-4.yaml", "training"
    )


def _near_alone(chance: random.Random) -> Iterator[Case]:
    for near in NEAR:
        changed = dict(line.partition(": ")[::2] for line in near.split("\n"))
        text = "".join(f"{key}: {value}\n" for key, value in {**GOOD, **changed}.items())
        yield Case(text, (), Device(gpu=True))
        yield Case(text, (), _device(chance))


def _device(chance: random.Random) -> Device:
    gpus = chance.choice((1, 1, 1, 1, 2))
    distributed = gpus > 1 or chance.random() < 0.4
    return Device(gpu=chance.random() < 0.7, tf32=chance.random() < 0.5, gpus=gpus, distributed=distributed)


def _case(text: str, chance: random.Random, image: ImageFacts, steps: Sequence[Step]) -> Case:
    lines = dict(_lines(text))
    overrides: list[str] = []
    for _ in range(chance.choice((0, 1, 1, 1, 2, 2, 3, 5))):
        _mutate(lines, overrides, chance, image, steps)
    device = Device(gpu=True, gpus=2) if chance.random() < 0.03 else _device(chance)
    text = "".join(f"{key}: {value}\n" for key, value in lines.items())
    return Case(text + _noise(chance, lines), tuple(overrides), device)


def _lines(text: str) -> Iterator[tuple[str, str]]:
    for key, value in yaml.safe_load(text).items():
        written = yaml.safe_dump(value, default_flow_style=True, width=10_000).strip()
        yield key, written.removesuffix("...").strip()


def _mutate(
    lines: dict[str, str], overrides: list[str], chance: random.Random, image: ImageFacts, steps: Sequence[Step]
) -> None:
    kind = chance.random()
    if kind < 0.25:
        lines.update(_near(chance))
    elif kind < 0.30:
        key = chance.choice(list(lines))
        lines[_typo(key, chance)] = lines.pop(key)
    elif kind < 0.34:
        lines.pop(chance.choice(list(lines)))
    elif kind < 0.37:
        lines[chance.choice([*image.derived, "evaluation_strategy", "no_cuda", "1", "null", '"a b"', "true"])] = "1"
    elif kind < 0.62:
        _clash(lines, chance.choice(steps), chance, image)
    elif kind < 0.72:
        argument = chance.choice(image.arguments)
        overrides.append(_override(argument.name, _value(argument, chance), chance))
    else:
        key = chance.choice(list(lines)) if chance.random() < 0.4 else chance.choice(image.arguments).name
        known = image.argument(key)
        lines[key] = _value(known, chance) if known else chance.choice(ODD)
    lines.pop(ASKS_THE_HUB, None)
    overrides[:] = [each for each in overrides if not each.startswith(ASKS_THE_HUB)]


def _near(chance: random.Random) -> Iterator[tuple[str, str]]:
    """Lines of one of NEAR; now and then without one of them."""
    lines = chance.choice(NEAR).split("\n")
    if len(lines) > 1 and chance.random() < 0.2:
        lines.remove(chance.choice(lines))
    for line in lines:
        key, _, value = line.partition(": ")
        yield key, value


def _clash(lines: dict[str, str], step: Step, chance: random.Random, image: ImageFacts) -> None:
    """What a step of the parser looks at, set to values that it tells apart."""
    expressions = [step.when, step.refuse, *(each for _, each in step.let)]
    told_apart = [f'"{word}"' for each in expressions if each for word in each.text.split("'")[1::2] if '"' not in word]
    names = {*step.keys, *(name for each in expressions if each for name in each.names)}
    for name in sorted(names):
        argument = image.argument(name)
        if argument and chance.random() < 0.8:
            lines[name] = (
                chance.choice(told_apart) if told_apart and chance.random() < 0.4 else _value(argument, chance)
            )


def _value(argument: Argument, chance: random.Random) -> str:
    kind = chance.random()
    if argument.choices and kind < 0.6:
        return f'"{chance.choice(argument.choices)}"'
    if argument.choices and kind < 0.8:
        return _typo(str(chance.choice(argument.choices)), chance)
    if argument.name in ("fsdp_config", "accelerator_config", "deepspeed", "new_special_tokens_config") and kind < 0.7:
        return chance.choice(MAPPINGS)
    if kind < 0.6:
        return _fitting(argument, chance)
    return chance.choice(ODD)


def _fitting(argument: Argument, chance: random.Random) -> str:
    types = argument.type.split(" | ")
    if "bool" in types:
        return chance.choice(("true", "true", "true", "false"))
    if "int" in types:
        return chance.choice(("0", "1", "2", "3", "4", "8", "100", "-1"))
    if "float" in types:
        return chance.choice(("0.0", "0.1", "0.5", "1.0", "1e-4", "10", "3", "-1.0", "1.5"))
    return chance.choice(("a", "a,b", "a, b,c", "data", "none"))


def _override(key: str, value: str, chance: random.Random) -> str:
    kind = chance.random()
    if kind < 0.03:
        return key
    if kind < 0.06:
        return f"{key}.x={value}"
    if kind < 0.08:
        return f"{key}[0]={value}"
    return f"{key}={value}"


def _typo(word: str, chance: random.Random) -> str:
    at = chance.randrange(len(word)) if word else 0
    letter = chance.choice(string.ascii_lowercase)
    return chance.choice(
        (word[:at] + word[at + 1 :] or "x", word[:at] + letter + word[at:], word[:at] + letter + word[at + 1 :])
    )


def _noise(chance: random.Random, lines: dict[str, Any]) -> str:
    kind = chance.random()
    if kind < 0.01:
        return f"{next(iter(lines), 'a')}: 1\n"
    if kind < 0.02:
        return chance.choice(("---\na: 1\n", "- a\n", "  x: 1\n", "<<: {bf16: false}\n", "\ttab: 1\n", "? [a]\n: b\n"))
    return ""
