from django.urls import path

from accounts.api import views

urlpatterns = [
    path("auth/tokens", views.TokensView.as_view(), name="tokens"),
    path("auth/tokens/<uuid:token_id>", views.TokenView.as_view(), name="token"),
    path("auth/password", views.PasswordView.as_view(), name="password"),
    path("auth/password/reset", views.ForgottenView.as_view(), name="password-forgotten"),
    path("auth/password/reset/confirm", views.ResetView.as_view(), name="password-reset"),
    path("auth/email/resend", views.ResendView.as_view(), name="email-resend"),
    path("auth/email/verify", views.VerifyView.as_view(), name="email-verify"),
    path("auth/sessions", views.SessionsView.as_view(), name="sessions"),
    path("auth/sessions/<uuid:session_id>", views.SessionView.as_view(), name="session"),
    path("auth/second-factor", views.FactorView.as_view(), name="second-factor"),
    path(
        "auth/second-factor/confirm",
        views.ConfirmFactorView.as_view(),
        name="second-factor-confirm",
    ),
    path(
        "auth/second-factor/disable",
        views.DisableFactorView.as_view(),
        name="second-factor-disable",
    ),
    path(
        "auth/second-factor/recovery-codes",
        views.RecoveryCodesView.as_view(),
        name="recovery-codes",
    ),
]
