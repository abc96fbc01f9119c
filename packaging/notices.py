#!/usr/bin/env python3
"""Prints the licence texts of all crates that are part of the program; each text once, with the crates it is for."""

import re

import crates

NAMES = re.compile(r"(un)?licen[sc]e|copying|copyright|notice", re.IGNORECASE)
HEAD = """kube-proxy-rs is licensed under the Apache License 2.0. It contains the Rust standard library (MIT OR Apache-2.0,
copyright the Rust Project contributors) and the crates below, under the licences that stand behind their names.

"""


def texts(crate):
    """The licence files that a crate comes with."""
    for path in sorted(crate.folder.iterdir()):
        if path.is_file() and NAMES.match(path.name):
            yield path.read_text(errors="replace").strip()


def notices(architectures=tuple(crates.TARGETS)):
    ours = (crates.REPOSITORY / "LICENSE").read_text().strip()
    of_text, lines = {}, []
    for crate in crates.linked(architectures):
        if crate.is_ours:
            continue
        found = list(texts(crate))
        # The text of this licence names no holder, so ours serves for those that come without.
        if not found and crate.license == "Apache-2.0":
            found = [ours]
        if not found:
            raise SystemExit(f"notices: crate {crate.name} {crate.version} ({crate.license}) comes without a licence text")
        lines.append(f"{crate.name} {crate.version} ({crate.license})")
        for text in found:
            of_text.setdefault(" ".join(text.split()), (text, []))[1].append(f"{crate.name} {crate.version}")
    parts = [HEAD + "\n".join(lines)]
    parts += [f"{'=' * 80}\n{', '.join(names)}\n\n{text}" for text, names in of_text.values()]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    print(notices(), end="")
