"""Terminal pictures of README and docs: `python docs/capture.py` runs real commands and writes their output as SVG.

With names of pictures as arguments it writes only these.
"""

import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

FOLDER = Path(__file__).parent / "pictures"
WIDTH = 104
REMOTE_FONTS = re.compile(r',\n\s*url\("https?:[^)]*\) format\("[^"]*"\)')  # Rich names fonts of a CDN
NOTICE = (
    "The glass workshop in the old tram depot opens its doors on Saturday, 14 March, from ten to four. Short courses "
    "in bead making cost 18 euros, children under twelve pay half. Marta Lindqvist shows at noon how a paperweight is "
    "blown. Bring closed shoes; safety glasses are lent at the desk."
)
PICTURES = {
    "experts": [
        "peftlab predict ner-clinic,sentiment-stays,ticket-urgency "
        '"The doctor gave my son ibuprofen for the fever, but the waiting room was filthy."'
    ],
    "entities": [
        'peftlab predict ner-clinic "Started amoxicillin 500 mg three times daily for a sore throat." '
        '"Denies chest pain, but the left knee is swollen." "Stopped ibuprofen last week after the rash came back."'
    ],
    "classes": [
        'peftlab predict sentiment-stays "Spotless room and the kindest staff, we are coming back." '
        '"The bed was awful and nobody answered the phone." "Great view, but you hear every car."',
    ],
    "labels": [
        'peftlab predict city-requests "The lamp at the playground is broken and the swings are covered in glass." '
        '"The 14 never came and then drove past the stop." "Thank you for the lovely flower beds."',
    ],
    "numbers": [
        'peftlab predict ticket-urgency "Nobody in the warehouse can print labels, three trucks are waiting." '
        '"Could I have a second monitor some day?" "My password expires tomorrow and the page to change it fails."',
    ],
    "answers": [
        f'peftlab predict qa-notices "How much is a short course?" "On which day can we visit?" '
        f'"Who sells the coffee?" --context {shlex.quote(NOTICE)}'
    ],
    "relations": [
        'peftlab predict relations-business "<e1:PER>Ada Okafor</e1> left the bank to start <e2:ORG>Solwind</e2>." '
        '"<e2:ORG>Brackwater Foods</e2> was bought by <e1:ORG>Halden Group</e1> in May." '
        '"<e1:ORG>Ferrin Glass</e1> is moving its plant away from <e2:LOC>Leeds</e2>."',
    ],
    "evaluate": ["peftlab evaluate sentiment-stays --data recipes/data/sentiment-stays/test.csv"],
}


def main(names: list[str]) -> None:
    """Write the pictures with these names, or every picture."""
    FOLDER.mkdir(exist_ok=True)
    for name in names or PICTURES:
        console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
        for command in PICTURES[name]:
            console.print(Text(f"$ {command}", style="bold"))
            console.print(Text.from_ansi(_output(command)))
        svg = REMOTE_FONTS.sub("", console.export_svg(title="peftlab"))
        (FOLDER / f"{name}.svg").write_text(svg, encoding="utf8")


def _output(command: str) -> str:
    settings = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(WIDTH)}
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True, env=settings)
    return done.stdout


if __name__ == "__main__":
    main(sys.argv[1:])
