# ruff: noqa: N999 (the command's name)
"""``manage.py join-token``: the line that joins a machine."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from accounts.errors import FlowError
from organizations.models import Organization
from workers import joining
from workers.api.fleet import command_for


class Command(BaseCommand):
    help = "Make a short-lived join token and print the line that joins a machine with it."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--organization",
            metavar="NAME",
            help="the machine works for this organization alone (its name or id); without: for all",
        )
        parser.add_argument("--minutes", type=int, default=60, help="how long it lasts (60)")
        parser.add_argument("--uses", type=int, default=1, help="how many machines may join (1)")
        parser.add_argument("--only-token", action="store_true", help="print the token and no more")

    def handle(self, **options: Any) -> None:
        organization = None
        if name := options["organization"]:
            found = [o for o in Organization.objects.all() if name in (o.name, str(o.pk))]
            if len(found) != 1:
                how = "several organizations have" if found else "no organization has"
                raise CommandError(f"Sorry, {how} the name {name}: give its id.")
            organization = found[0]
        try:
            made, token = joining.make_join_token(
                organization, by=None, minutes=options["minutes"], uses=options["uses"]
            )
        except FlowError as error:
            raise CommandError(error.detail) from error
        if options["only_token"]:
            self.stdout.write(token)
            return
        whom = organization.name if organization else "the platform"
        self.stdout.write(
            f"For {whom}, {made.max_uses} machine{'s' if made.max_uses > 1 else ''}, "
            f"until {made.expires_at:%Y-%m-%d %H:%M} UTC. On the machine:\n\n  {command_for(token)}"
        )
