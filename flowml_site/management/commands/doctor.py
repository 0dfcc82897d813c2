import json
import textwrap
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser

from flowml_site import doctor
from flowml_site.findings import Severity


class Command(BaseCommand):
    help = "Say what is wrong with this installation and what to do about it. 1: something is."
    requires_system_checks = ()  # it makes them itself, and goes on after a bad one

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="for machines")

    def handle(self, *args: Any, **options: Any) -> None:
        report = doctor.examine()
        if options["json"]:
            self.stdout.write(json.dumps(doctor.as_json(report), indent=2))
        else:
            self._tell(report)
        if not report.well:
            raise SystemExit(1)

    def _tell(self, report: doctor.Report) -> None:
        styles = {
            Severity.CRITICAL: self.style.ERROR,
            Severity.WARNING: self.style.WARNING,
            Severity.NOTE: self.style.NOTICE,
        }
        for one in report.found:
            self.stdout.write(styles[one.severity](f"{one.severity.word:<9} {one.title}"))
            for lead, text in ((" " * 10, one.detail), (" " * 8 + "→ ", one.remedy)):
                for paragraph in text.splitlines():
                    self.stdout.write(
                        textwrap.fill(
                            paragraph, 96, initial_indent=lead, subsequent_indent=" " * 10
                        )
                    )
        for name, why in report.skipped.items():
            self.stdout.write(f"{'skipped':<9} {name}: {why}")
        counts = [
            severity.of(count)
            for severity in reversed(Severity)
            if (count := sum(one.severity == severity for one in report.found))
        ]
        said = ", ".join(counts) if counts else self.style.SUCCESS("nothing is wrong")
        self.stdout.write(f"FlowML {settings.VERSION}: {len(report.checked)} checks, {said}")
