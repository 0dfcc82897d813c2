from django.urls import path

from organizations.api import views
from organizations.api.auth import LoginView, LogoutView, MeView, RefreshView, RegisterView

urlpatterns = [
    path("auth/register", RegisterView.as_view(), name="register"),
    path("auth/login", LoginView.as_view(), name="login"),
    path("auth/refresh", RefreshView.as_view(), name="refresh"),
    path("auth/logout", LogoutView.as_view(), name="logout"),
    path("auth/me", MeView.as_view(), name="me"),
    path("organizations", views.OrganizationsView.as_view(), name="organizations"),
    # As some write it; the same, so it stands in the schema once.
    path("organizations/", views.OrganizationsView.as_view(schema=None)),
    path("organizations/join", views.JoinView.as_view(), name="organization-join"),
    path(
        "organizations/<uuid:organization>", views.OrganizationView.as_view(), name="organization"
    ),
    *(
        path(
            f"organizations/<uuid:organization>/{tail}", view.as_view(), name=f"organization-{name}"
        )
        for tail, view, name in (
            ("members", views.MembersView, "members"),
            ("members/<uuid:user>", views.MemberView, "member"),
            ("leave", views.LeaveView, "leave"),
            ("transfer", views.TransferView, "transfer"),
            ("invite-code", views.InviteView, "invite-code"),
            ("tokens", views.ServiceTokensView, "tokens"),
            ("tokens/<uuid:token>", views.ServiceTokenView, "token"),
            ("usage", views.UsageView, "usage"),
            ("exports", views.ExportsView, "exports"),
            ("exports/<uuid:export>", views.ExportView, "export"),
            ("exports/<uuid:export>/download", views.ExportDownloadView, "export-download"),
            ("deletion", views.DeletionView, "deletion"),
            ("audit", views.AuditView, "audit"),
            ("audit/export", views.AuditExportView, "audit-export"),
        )
    ),
]
