"""Tasks for Label Studio: images with the labels that a model predicts, for a person to put right, and the interface.

    task = make_task("photos/a.jpg", ["cat"], score=0.93, model="resnet50", number=1)
    make_interface(("cat", "dog"), max_labels=0)    # what a project's labelling interface must be

See https://labelstud.io/guide/predictions. dataset/formats/label_studio.py reads what is exported there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

from evaluation import pages

TASKS_FILE, INTERFACE_FILE = "label_studio_tasks.json", "label_studio_config.xml"
CONTROL = "choice"  # Label Studio's name for it, by which dataset/formats/label_studio.py knows the labels' column


def make_task(place: str, labels: Sequence[str], score: float, model: str, number: int) -> dict[str, Any]:
    """A task with a prediction, the task of this `number`.

    `place` is the image's path from the folder on that is LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT there. Tasks can be
    sorted by `score`.
    """
    result = {
        "id": f"task{number}",
        "type": "choices",
        "from_name": CONTROL,
        "to_name": "image",
        "value": {"choices": [*labels]},
    }
    prediction = {"model_version": model, "score": round(score, 6), "result": [result] if labels else []}
    return {"data": {"image": f"/data/local-files/?d={pages.address(place)}"}, "predictions": [prediction]}


def make_interface(classes: Sequence[str], max_labels: int) -> str:
    """The labelling interface of a project for such tasks; `max_labels` of an image, 0: any number."""
    number = "single" if max_labels == 1 else "multiple"
    lines = [
        "<View>",
        '  <Image name="image" value="$image"/>',
        f'  <Choices name="{CONTROL}" toName="image" choice="{number}" showInLine="true">',
        *(f"    <Choice value={quoteattr(name)}/>" for name in classes),
        "  </Choices>",
        "</View>",
    ]
    return "\n".join([*lines, ""])
