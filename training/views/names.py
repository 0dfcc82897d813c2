"""Names of models on their pages: the champion is moved here."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.urls import reverse
from django.views.decorators.http import require_POST

from accounts.pages import tells_problems
from organizations.access import OrgRequest, org_role
from organizations.models import Role
from training import named
from training.names import CHAMPION, NamedVersion


@require_POST
@org_role(Role.DEVELOPER)
@tells_problems
def champion(request: OrgRequest, version_id: UUID) -> HttpResponse:
    """Let a name alone mean this version from now on."""
    versions = NamedVersion.objects.of(request.membership.organization).select_related("named")
    version = get_object_or_404(versions.filter(model__isnull=False), pk=version_id)
    named.move_alias(request.membership, version.named.name, CHAMPION, version.number)
    return redirect(f"{reverse('training:model', args=[version.model_id])}?tab=use")
