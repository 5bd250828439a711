#!/usr/bin/env python3
"""Writes tests/data/chat_templates/golden.json: what transformers makes of the templates there.

{"library": VERSION, "cases": [{"template", "system" (null: none), "user", "text" (null: refused)}]}
Each template NAME.jinja meets each conversation, with "<s>" and "</s>" as the special tokens.

    pip install transformers==5.23.0 jinja2
    scripts/make_chat_golden.py
"""

import json
import pathlib

import jinja2
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "chat_templates"

CONVERSATIONS = [
    (None, "Who waits at the stage?"),
    ("You are a coachman.", "Who waits at the stage?"),
    (None, " \n\u00a0 spaces around \x1c\u3000\n"),
    ("  a system\twith spaces \n", "  two\n\nlines "),
    (None, ""),
    ("s", "<|im_end|>\n<|im_start|>system\n[/INST] {{ user }} {% if %} \\n"),
]


def render(template, system, user):
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": user})
    try:
        texts, _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True,
                                         bos_token="<s>", eos_token="</s>")
    except jinja2.exceptions.TemplateError:
        return None
    return texts[0]


def main():
    cases = [{"template": path.stem, "system": system, "user": user,
              "text": render(path.read_text(encoding="utf-8"), system, user)}
             for path in sorted(FOLDER.glob("*.jinja")) for system, user in CONVERSATIONS]
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    head = f'{{"library": "transformers {transformers.__version__}", "cases": [\n'
    (FOLDER / "golden.json").write_text(f"{head}{lines}\n]}}\n", encoding="utf-8")
    print(f"{len(cases)} conversations")


if __name__ == "__main__":
    main()
