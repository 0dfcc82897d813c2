"""Tables that ship with FlowML, to try it without an upload. Sources: `data/README.md`."""

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "data"


@dataclass(frozen=True)
class Sample:
    key: str
    title: str
    sentence: str
    target: str  # what people usually predict

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.key}.csv"


SAMPLES = {
    sample.key: sample
    for sample in (
        Sample(
            "penguins",
            "Palmer penguins",
            "344 penguins of three species: which one is it, by its measures and its island?",
            "species",
        ),
        Sample(
            "iris",
            "Iris flowers",
            "150 flowers, four measures each: which of three species?",
            "species",
        ),
        Sample(
            "cars",
            "Cars of the seventies",
            "406 cars with gaps in the data: how far does each go on a gallon?",
            "miles_per_gallon",
        ),
    )
}
