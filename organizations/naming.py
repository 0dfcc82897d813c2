"""Names that are unique in an organization, as constraints of the database see to it."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import IntegrityError, transaction

from accounts.errors import Conflict


class NameTaken(Conflict):
    code = "name-taken"

    def __init__(self, what: str, name: str) -> None:
        sentence = f"There is a {what} named {name} already: choose another name."
        super().__init__(sentence, errors={"name": [sentence]})


@contextmanager
def unique(what: str, name: str) -> Iterator[None]:
    """Within it a row is stored whose constraint is called ``<what>_name_unique``.

    Raises NameTaken where the organization has such a thing of that name.
    """
    try:
        with transaction.atomic():
            yield
    except IntegrityError as error:
        if f"{what}_name_unique" not in str(error):
            raise
        raise NameTaken(what, name) from None
