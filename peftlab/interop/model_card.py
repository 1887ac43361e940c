"""The model card (README.md) of an imported adapter: where it comes from, and what is known about it."""

import json
import re

from peftlab.store import ImportInfo, Manifest
from peftlab.tasks import TASKS

_CARD = """\
---
library_name: peft
base_model: {base}
pipeline_tag: {pipeline}
tags: [peftlab, {method}]
---

# {name}

{method} adapter for {task} on `{base}`, imported with peftlab {peftlab} on {created} from `{source}`{made_by}.
It was trained elsewhere. Its training data is not known here, and it was not scored.

{labels}

{notes}

## Use

```bash
peftlab predict {name} {example}
```

With only PEFT and Transformers:

```python
from peft import PeftModel
from transformers import {auto_class}

head_labels = {head_labels}
base = {auto_class}.from_pretrained(
    "{base}", num_labels={count}, id2label=dict(enumerate(head_labels))
)
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```

{reading}
"""


def imported_card(manifest: Manifest, imported: ImportInfo) -> str:
    """Write the card as Markdown from the manifest."""
    task = manifest.task.build()
    record = TASKS[task.type]
    card = _CARD.format(
        name=manifest.name,
        base=manifest.base.model,
        pipeline=record.hub_tag(task),
        method=manifest.method,
        task=task.type,
        peftlab=manifest.versions["peftlab"],
        created=manifest.created[:10],
        source=imported.source + (f"@{imported.commit}" if imported.commit else ""),
        made_by=f", which PEFT {imported.peft_version} saved" if imported.peft_version else "",
        labels=f"Labels: {', '.join(f'`{label}`' for label in task.labels)}" if task.labels else "",
        notes="\n".join(f"- {note[0].upper()}{note[1:]}" for note in imported.notes),
        example=record.example(task),
        auto_class=task.head.auto_class,
        head_labels=json.dumps(task.head.labels, ensure_ascii=False),
        count=len(task.head.labels),
        reading=record.output_help(task),
    )
    return re.sub(r"\n{3,}", "\n\n", card).rstrip() + "\n"
