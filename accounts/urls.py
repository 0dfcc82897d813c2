from django.urls import path

from accounts import views

app_name = "accounts"
urlpatterns = [
    path("sign-in", views.SignIn.as_view(), name="sign-in"),
    path("sign-in/code", views.code, name="code"),
    path("sign-out", views.SignOut.as_view(), name="sign-out"),
    path("password/forgotten", views.forgotten, name="forgotten"),
    path("password/reset", views.reset, name="reset"),
    path("email/resend", views.resend, name="resend"),
    path("email/verify", views.verify, name="verify"),
    path("account", views.profile, name="profile"),
    path("account/password", views.password, name="password"),
    path("account/tokens", views.tokens, name="tokens"),
    path("account/tokens/<uuid:token_id>/revoke", views.revoke, name="revoke"),
    path("account/sessions", views.sessions, name="sessions"),
    path("account/sessions/end", views.end_sessions, name="end-sessions"),
    path("account/sessions/<uuid:session_id>/end", views.end_session, name="end-session"),
    path("account/second-factor", views.factor, name="factor"),
    path("admin/login/", views.console_sign_in, name="console-sign-in"),
]
