"""``manage.py up``: everything that FlowML is, on this machine, until Ctrl-C."""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from flowml_site.embedded import ServiceError
from flowml_site.platform import Supervisor


class Command(BaseCommand):
    help = (
        "Start PostgreSQL and Valkey (unless DATABASE_URL and REDIS_URL name others), migrate, and "
        "run web, control, beat and a node until Ctrl-C. Logs are in var/logs/."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default=settings.HOST)
        parser.add_argument("--port", type=int, default=settings.PORT)
        parser.add_argument("--without-node", action="store_true", help="nodes run elsewhere")

    def handle(self, *args: Any, **options: Any) -> None:
        supervisor = Supervisor(
            var=settings.FLOWML_VAR,
            host=options["host"],
            port=options["port"],
            debug=settings.DEBUG,
            without=frozenset({"node"} if options["without_node"] else ()),
        )
        try:
            supervisor.run()
        except ServiceError as error:
            raise CommandError(str(error)) from error
