"""Browser sessions in a table that tells whose they are (Django's documented way to extend them).

So a person can see where they are signed in and end it, and no second record of a session can
disagree with the first.
"""

from typing import Any

from django.contrib.sessions.backends.db import SessionStore as DatabaseStore
from django.contrib.sessions.middleware import SessionMiddleware as DjangoMiddleware
from django.http import HttpRequest, HttpResponseBase
from django.utils import timezone

from accounts.addresses import address_of
from accounts.models import SEEN_EVERY, BrowserSession


class SessionStore(DatabaseStore):
    row: BrowserSession | None = None  # as it was read or written last
    address: str | None = None
    device = ""

    @classmethod
    def get_model_class(cls) -> type[BrowserSession]:
        return BrowserSession

    def _get_session_from_db(self) -> BrowserSession | None:
        row: BrowserSession | None = super()._get_session_from_db()  # type: ignore[misc]
        self.row = row
        return row

    def create_model_instance(self, data: dict[str, Any]) -> BrowserSession:
        new = super().create_model_instance(data)
        assert isinstance(new, BrowserSession)
        new.user_id = data.get("_auth_user_id")
        new.address, new.device = self.address, self.device
        if self.row is not None and self.row.session_key == new.session_key:
            new.id, new.created_at = self.row.id, self.row.created_at
        self.row = new
        return new


class SessionMiddleware(DjangoMiddleware):
    """Django's, which also notes where a session is used, and once a minute that it is."""

    def process_request(self, request: HttpRequest) -> None:
        super().process_request(request)
        session: Any = request.session
        session.address = address_of(request)
        session.device = request.headers.get("User-Agent", "")[:200].replace("\0", "")

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> Any:
        answer = super().process_response(request, response)  # type: ignore[arg-type]
        row = getattr(request.session, "row", None)
        now = timezone.now()
        if row and row.user_id and now - row.last_seen_at >= SEEN_EVERY:
            BrowserSession.objects.filter(pk=row.pk).update(
                last_seen_at=now,
                address=request.session.address,  # type: ignore[attr-defined]
                device=request.session.device,  # type: ignore[attr-defined]
            )
        return answer
