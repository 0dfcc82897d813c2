from django.urls import path

from organizations import pages, views

app_name = "organizations"
urlpatterns = [
    path("sign-up", views.sign_up, name="sign-up"),
    path("join", views.join, name="join"),
    path("organizations", pages.mine, name="mine"),
    path("organizations/new", pages.make, name="make"),
    path("organization", pages.detail, name="detail"),
    path("organization/rename", pages.rename, name="rename"),
    path("organization/members/<uuid:user>/role", pages.change_role, name="role"),
    path("organization/members/<uuid:user>/remove", pages.remove_member, name="remove-member"),
    path("organization/invite", pages.renew_invite, name="invite"),
    path("organization/invite/withdraw", pages.withdraw_invite, name="withdraw-invite"),
    path("organization/transfer", pages.transfer, name="transfer"),
    path("organization/exports", pages.export, name="export"),
    path("organization/exports/<uuid:export>", pages.export_file, name="export-file"),
    path("organization/exports/<uuid:export>/delete", pages.discard_export, name="export-delete"),
    path("organization/delete", pages.delete, name="delete"),
    path("organization/restore", pages.restore, name="restore"),
    path("organization/leave", pages.leave, name="leave"),
    path("organization/tokens", pages.make_token, name="make-token"),
    path("organization/tokens/<uuid:token>/revoke", pages.revoke_token, name="revoke-token"),
    path("organization/audit.csv", pages.audit_csv, name="audit-csv"),
    path("organization/choose/<uuid:organization_id>", views.choose, name="choose"),
]
