"""The table of options in the documentation."""

from collections.abc import Iterable

from exporter.arguments import VERBS
from exporter.options.groups import Option
from exporter.recipe import GROUPS


def options_table() -> str:
    """Returns a table of all options in Markdown, for the documentation."""
    lines: list[str] = []
    own = {name: verb.own for name, verb in VERBS.items() if verb.own}
    for name, group in (GROUPS | own).items():
        lines += [f"### {group.title.capitalize()} (`{name}`)", ""]
        lines += ["| option | default | what it does |", "|---|---|---|"]
        lines += [_row(option) for option in group.options()]
        lines.append("")
    return "\n".join(lines)


def _row(option: Option) -> str:
    shown: Iterable[object] = (
        option.default if isinstance(option.default, tuple) else (option.default,)
    )
    default = "" if option.default is None else ", ".join(f"`{value}`" for value in shown)
    told = option.help.replace("|", "\\|")
    return f"| `{option.name}` (`{option.flag}`) | {default} | {told} |"
