"""Settings: one file, fed by environment variables (`.env.example` lists and explains them).

Every value passes a typed reader that stops with a clear message; a secret may also come as
``NAME_FILE``, the path of a file that holds it.
"""

import os
import sys
from datetime import timedelta
from pathlib import Path

import environ
from corsheaders.defaults import default_headers
from django.core.exceptions import ImproperlyConfigured
from django.templatetags.static import static

from flowml_site import embedded
from pipelines import reach

BASE_DIR = Path(__file__).resolve().parent.parent
VERSION = "0.1.0"

env = environ.FileAwareEnv()
environ.Env.read_env(BASE_DIR / ".env")


def _positive(name: str, default: float) -> float:
    try:
        value = env.float(name, default=default)
    except ValueError:
        value = -1
    if value <= 0:
        raise ImproperlyConfigured(f"{name} must be a number above 0, not {env.str(name)!r}.")
    return value


def _limit(name: str, unit: int = 1) -> int | None:
    """A quota of every organization that has no other; None where it isn't set: no limit."""
    text = env.str(name, default="").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < 1e12:
        raise ImproperlyConfigured(f"{name} must be empty or a number from 0, not {text!r}.")
    return int(value * unit)


def _port(name: str, default: int) -> int:
    text = env.str(name, default=str(default))
    if not (text.isdecimal() and int(text) < 65536):
        raise ImproperlyConfigured(f"{name} must be a number from 0 to 65535, not {text!r}.")
    return int(text)


# --- What an operator sets -----------------------------------------------------------------------

DEBUG = env.bool("DEBUG", default=False)
HOST = env.str("HOST", default="127.0.0.1")
PORT = _port("PORT", 8000)
PUBLIC_URL = env.str("PUBLIC_URL", default=f"http://{HOST}:{PORT}").rstrip("/")
# Where control reaches web: not through the proxy that PUBLIC_URL may name.
INTERNAL_URL = env.str("INTERNAL_URL", default=f"http://{HOST}:{PORT}").rstrip("/")
FLOWML_VAR = Path(env.str("FLOWML_VAR", default=str(BASE_DIR / "var"))).resolve()

SECRET_KEY = env.str("SECRET_KEY", default="")
if not SECRET_KEY:
    SECRET_KEY = embedded.secrets(FLOWML_VAR).get("SECRET_KEY", "")
if not SECRET_KEY:
    if not DEBUG:
        raise ImproperlyConfigured(
            "SECRET_KEY is not set. Set it to a long random string (or SECRET_KEY_FILE to a file "
            "that holds one); `make up` makes one by itself, and DEBUG=1 does without."
        )
    SECRET_KEY = "insecure-development-key-" + "x" * 40

# Signs artifacts: the seed of an Ed25519 key, 32 bytes as hex. Nodes hold only the public half.
SIGNING_KEY = env.str(
    "FLOWML_SIGNING_KEY", default=embedded.secrets(FLOWML_VAR).get("FLOWML_SIGNING_KEY", "")
)
# What a node shows to register. Empty: no node can join.
JOIN_TOKEN = env.str(
    "FLOWML_JOIN_TOKEN", default=embedded.secrets(FLOWML_VAR).get("FLOWML_JOIN_TOKEN", "")
)

# What Prometheus shows at /metrics. Empty: only staff who are signed in may look.
METRICS_TOKEN = env.str("METRICS_TOKEN", default="")
# Read by prometheus_client when it is first imported, which is later than this.
os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", str(FLOWML_VAR / "metrics"))
Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).mkdir(parents=True, exist_ok=True)

# Where machines that join get packages from: an index's URL, or a folder of wheels on them. Empty:
# from where their own pip gets them.
PACKAGE_INDEX = env.str("FLOWML_PACKAGE_INDEX", default="")

SCHEDULER_BACKEND = env.str("SCHEDULER_BACKEND", default="celery")
if SCHEDULER_BACKEND not in {"celery", "poll"}:
    raise ImproperlyConfigured(
        f"SCHEDULER_BACKEND must be celery or poll, not {SCHEDULER_BACKEND!r}."
    )

# Set by `manage.py up` where a spare node may start on this machine: touched while it is wanted.
SPARE_FILE = env.str("FLOWML_SPARE_FILE", default="")

MAX_CONCURRENT_JOBS = int(_positive("MAX_CONCURRENT_JOBS", 4))  # per organization
MAX_TIME_BUDGET = _positive("MAX_TIME_BUDGET", 240)  # minutes, per training job
MAX_UPLOAD_SIZE_MB = int(_positive("MAX_UPLOAD_SIZE_MB", 2048))
MAX_QUEUED_JOBS = int(_positive("MAX_QUEUED_JOBS", 100))  # per organization
MAX_STORAGE_BYTES = _limit("MAX_STORAGE_GB", 10**9)
MAX_CPU_HOURS = _limit("MAX_CPU_HOURS")  # a month
MAX_GPU_HOURS = _limit("MAX_GPU_HOURS")
MAX_DEPLOYMENTS = _limit("MAX_DEPLOYMENTS")
MAX_ORGANIZATIONS = int(_positive("MAX_ORGANIZATIONS", 10))  # that one person makes
DELETION_DAYS = _positive("DELETION_DAYS", 7)  # in which a deleted organization can be restored
EXPORT_DAYS = _positive("EXPORT_DAYS", 7)  # that an export can be downloaded
ALLOW_SIGNUP = env.bool("ALLOW_SIGNUP", default=True)

HEARTBEAT_S = _positive("HEARTBEAT_SECONDS", 2)
LEASE_S = _positive("LEASE_SECONDS", 10)

# --- Django --------------------------------------------------------------------------------------

ROOT_URLCONF = "flowml_site.urls"
ASGI_APPLICATION = "flowml_site.asgi.application"
AUTH_USER_MODEL = "accounts.User"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English"), ("de", "Deutsch")]
LOCALE_PATHS = [BASE_DIR / "locale"]
FORMAT_MODULE_PATH = ["flowml_site.formats"]
TIME_ZONE = "UTC"
USE_TZ = True

INSTALLED_APPS = [
    "daphne",
    "unfold",
    "unfold.contrib.filters",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "corsheaders",
    "rest_framework",
    "rest_framework_simplejwt",
    "django_filters",
    "django_htmx",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "channels",
    "django_celery_beat",
    "django_otp",
    "django_otp.plugins.otp_totp",
    "accounts",
    "organizations",
    "workers",
    "datasets",
    "training",
    "clusters",
    "pipelines",
    "flowml_site",
]

MIDDLEWARE = [
    "flowml_site.metrics.MetricsMiddleware",
    "flowml_site.proxies.ProxyMiddleware",
    "flowml_site.logs.RequestIdMiddleware",
    "organizations.audit.AuditMiddleware",
    "flowml_site.csp.PolicyMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "corsheaders.middleware.CorsMiddleware",
    "accounts.sessions.SessionMiddleware",
    "accounts.languages.LanguageMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "organizations.frame.membership",
            ],
        },
    },
]

DATABASE_URL = env.str("DATABASE_URL", default="") or embedded.database_url(FLOWML_VAR)
DATABASES = {"default": env.db_url_config(DATABASE_URL)}
DATABASES["default"]["CONN_HEALTH_CHECKS"] = True
DATABASES["default"].setdefault("OPTIONS", {})
# The second line between tenants (organizations/rls.py). "auto": where the database has it.
ROW_SECURITY = env.str("ROW_SECURITY", default="auto")
if ROW_SECURITY not in {"auto", "require"}:
    raise ImproperlyConfigured(f"ROW_SECURITY must be auto or require, not {ROW_SECURITY!r}.")
# A pool and not CONN_MAX_AGE: under ASGI every request may come on another thread.
DATABASES["default"]["OPTIONS"]["pool"] = {"min_size": 1, "max_size": 12, "timeout": 10}

# --- Valkey: broker, channel layer, cache --------------------------------------------------------

REDIS_URL = env.str("REDIS_URL", default="") or embedded.redis_url(FLOWML_VAR) or ""

# Where nodes on other machines reach the broker, without a password: each gets a user of its own.
NODE_BROKER_URL = env.str("FLOWML_NODE_BROKER_URL", default="")

CELERY_BROKER_URL = REDIS_URL
CELERY_TASK_DEFAULT_QUEUE = "control"
# What may take hours has a process of its own: nothing short waits for it.
CELERY_TASK_ROUTES = {"organizations.tasks.*": {"queue": "control-long"}}
CELERY_TASK_IGNORE_RESULT = True
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "socket_keepalive": True,
    "health_check_interval": 10,
    "socket_connect_timeout": 3,
    "socket_timeout": 5,  # a broker may be frozen, or behind a cut network, and refuse nobody
}
CELERY_TASK_PUBLISH_RETRY_POLICY = {"max_retries": 1, "interval_start": 0, "interval_max": 0.2}
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
# Control scores predictions that came from outside: a child that runs away is ended.
CELERY_TASK_TIME_LIMIT = 300
CELERY_TASK_SOFT_TIME_LIMIT = 270
CELERY_WORKER_MAX_MEMORY_PER_CHILD = 1_500_000  # KiB
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_BEAT_MAX_LOOP_INTERVAL = 1
CELERY_BEAT_SCHEDULE = {
    "organizations-sweep": {
        "task": "organizations.tasks.sweep",
        "schedule": 60.0,
        "options": {"expires": 50, "queue": "control-long"},
    },
    "workers-sweep": {
        "task": "workers.tasks.sweep",
        "schedule": LEASE_S / 5,
        # A sweep that waited longer than this is worthless: the next one does its work.
        "options": {"expires": 0.6 * LEASE_S},
    },
    "training-sweep": {
        "task": "training.tasks.sweep",
        "schedule": 15.0,
        "options": {"expires": 12},
    },
    "clusters-sweep": {
        "task": "clusters.tasks.sweep",
        "schedule": LEASE_S / 4,
        "options": {"expires": 0.6 * LEASE_S},
    },
    "pipelines-sweep": {
        "task": "pipelines.tasks.sweep",
        "schedule": LEASE_S / 2,
        "options": {"expires": 0.6 * LEASE_S},
    },
    "clusters-watch": {
        "task": "clusters.tasks.watch",
        "schedule": 15.0,
        "options": {"expires": 12},
    },
    "clusters-meter": {
        "task": "clusters.tasks.meter",
        "schedule": 60.0,
        "options": {"expires": 50},
    },
    "clusters-history": {
        "task": "clusters.tasks.history",
        "schedule": 300.0,
        "options": {"expires": 200},
    },
    "accounts-tidy": {"task": "accounts.tasks.tidy", "schedule": 24 * 3600.0},
    "pipelines-tidy": {"task": "pipelines.tasks.tidy", "schedule": 24 * 3600.0},
}

CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [REDIS_URL], "prefix": "flowml-live"},
    },
}
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": REDIS_URL,
        "KEY_PREFIX": "flowml",
    },
    # Where tries are counted while Valkey is away.
    "process": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
}

# --- Files ---------------------------------------------------------------------------------------

STORAGES = {
    "default": {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {
            "location": FLOWML_VAR / "storage",
            "base_url": None,  # no URL serves a stored file: every download passes a permission
            "file_permissions_mode": 0o600,
            "directory_permissions_mode": 0o700,
        },
    },
    "staticfiles": {
        "BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"
        if DEBUG or "test" in sys.argv or os.environ.get("PYTEST_VERSION")
        else "flowml_site.statics.StaticFiles",
    },
}
STATIC_URL = "/static/"
STATIC_ROOT = FLOWML_VAR / "static"
STATICFILES_DIRS = [BASE_DIR / "static"]
WHITENOISE_USE_FINDERS = DEBUG
FILE_UPLOAD_TEMP_DIR = FLOWML_VAR / "tmp"
# Folders of this machine whose files a training may name. {organization} stands for an id.
DATA_ROOTS = [one for one in env.str("FLOWML_DATA_ROOTS", default="").split(os.pathsep) if one]
# Registries whose images deployments may run, alone or with the beginning of a path. Empty: none.
CONTAINER_REGISTRIES = [
    one.strip().lower() for one in env.list("FLOWML_CONTAINER_REGISTRIES", default=[]) if one
]
# The files of workflow tasks' logs, in FLOWML_VAR/logs/workflow (pipelines/logs.py).
LOG_ROTATION_SIZE_MB = env.int("LOG_ROTATION_SIZE_MB", default=10)
LOG_KEEP_DAYS = env.int("LOG_KEEP_DAYS", default=30)
# Where connections may lead: host:port entries (pipelines/reach.py). Empty: nowhere.
REACH = env.str("FLOWML_REACH", default="")
try:
    reach.parse(REACH)
except reach.BadRule as problem:
    raise ImproperlyConfigured(f"FLOWML_REACH: {problem}") from None
# How files travel to and from connections (pipelines/transfers.py).
TRANSFER = {
    "chunk_mib": env.int("TRANSFER_CHUNK_MIB", default=8),
    "workers": env.int("TRANSFER_PARALLEL_WORKERS", default=4),
    "retries": env.int("TRANSFER_MAX_RETRIES", default=5),
    "verify": env.bool("TRANSFER_VERIFY_CHECKSUM", default=True),
}
# Folders of nodes below which connections may keep files. {organization} stands for an id. And
# whether programs of pipelines may run there, as the node's own user.
LOCAL_ROOTS = [one for one in env.str("FLOWML_LOCAL_ROOTS", default="").split(os.pathsep) if one]
LOCAL_PROGRAMS = env.bool("FLOWML_LOCAL_PROGRAMS", default=False)
FILE_UPLOAD_HANDLERS = ["datasets.uploads.LimitedUploadHandler"]
DATA_UPLOAD_MAX_MEMORY_SIZE = 16 * 1024 * 1024  # form fields and JSON; files are streamed
DATA_UPLOAD_MAX_NUMBER_FIELDS = 20_000  # the form that tries a model has one for each column
FILE_UPLOAD_TEMP_DIR.mkdir(parents=True, exist_ok=True)

# --- Who may do what -----------------------------------------------------------------------------

AUTHENTICATION_BACKENDS = ["accounts.backends.LimitedBackend"]
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.Argon2PasswordHasher",  # id; the others are upgraded at sign-in
    "accounts.hashers.BcryptHasher",
    "django.contrib.auth.hashers.BCryptSHA256PasswordHasher",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
PASSWORD_RESET_TIMEOUT = 3600  # s
SESSION_ENGINE = "accounts.sessions"
REQUIRE_VERIFIED_EMAIL = env.bool("REQUIRE_VERIFIED_EMAIL", default=False)
OTP_TOTP_ISSUER = "FlowML"
LOGIN_URL = "accounts:sign-in"
LOGIN_REDIRECT_URL = "/"
LOGOUT_REDIRECT_URL = LOGIN_URL

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "accounts.authentication.TokenAuthentication",
        "accounts.jwt.JWTAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["accounts.permissions.SignedIn"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": [
        "accounts.parsers.JSONParser",
        "rest_framework.parsers.FormParser",
        "rest_framework.parsers.MultiPartParser",
    ],
    "DEFAULT_PAGINATION_CLASS": "accounts.pagination.Page",
    "DEFAULT_FILTER_BACKENDS": [
        "django_filters.rest_framework.DjangoFilterBackend",
        "rest_framework.filters.OrderingFilter",
        "rest_framework.filters.SearchFilter",
    ],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "accounts.errors.problem_response",
}
SIMPLE_JWT = {
    "ACCESS_TOKEN_LIFETIME": timedelta(minutes=_positive("ACCESS_TOKEN_EXPIRE_MINUTES", 60)),
    "REFRESH_TOKEN_LIFETIME": timedelta(days=7),
    "UPDATE_LAST_LOGIN": False,
    "CHECK_REVOKE_TOKEN": True,  # a new password voids the tokens of the old one
}
SPECTACULAR_SETTINGS = {
    "TITLE": "FlowML API",
    "DESCRIPTION": "From a table to a served model, on machines that you own.",
    "VERSION": VERSION,
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "COMPONENT_SPLIT_REQUEST": True,
    "SCHEMA_PATH_PREFIX": "/api",
    "ENUM_NAME_OVERRIDES": {
        "DeploymentState": "clusters.models.Deployment.State",
        "DeploymentPriority": "clusters.api.serializers.PRIORITIES",
        "ReplicaState": "clusters.models.Replica.State",
        "PipelineRunState": "pipelines.models.Run.State",
        "PipelineStepState": "pipelines.models.Step.State",
        "WorkflowStatus": "pipelines.workflow.STATUSES",
        "ConnectionKind": "pipelines.api.connections.KINDS",
        "DatasetState": "datasets.models.DatasetVersion.State",
        "JobState": "training.models.TrainingJob.State",
        "ModelState": "training.models.TrainedModel.State",
        "ImportanceState": "training.learned.Importance.State",
    },
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "accounts.openapi.with_problems",
    ],
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
}

# Messages to people: printed by control unless there is a server for them.
EMAIL_HOST = env.str("EMAIL_HOST", default="")
EMAIL_BACKEND = f"django.core.mail.backends.{'smtp' if EMAIL_HOST else 'console'}.EmailBackend"
EMAIL_PORT = _port("EMAIL_PORT", 587)
EMAIL_HOST_USER = env.str("EMAIL_HOST_USER", default="")
EMAIL_HOST_PASSWORD = env.str("EMAIL_HOST_PASSWORD", default="")
EMAIL_USE_SSL = env.bool("EMAIL_USE_SSL", default=False)
EMAIL_USE_TLS = env.bool("EMAIL_USE_TLS", default=not EMAIL_USE_SSL)
EMAIL_TIMEOUT = 10  # s
DEFAULT_FROM_EMAIL = env.str("EMAIL_FROM", default="FlowML <flowml@localhost>")

ALLOWED_HOSTS = env.list(
    "ALLOWED_HOSTS",
    default=list(
        {"localhost", "127.0.0.1", "[::1]", PUBLIC_URL.split("://")[-1].rsplit(":", 1)[0]}
    ),
)
CORS_ALLOWED_ORIGINS = env.list("CORS_ORIGINS", default=[])
CORS_URLS_REGEX = r"^/(api/|v2(/|$))"  # pages are for nobody else's scripts
CORS_ALLOW_HEADERS = [*default_headers, "x-organization", "idempotency-key"]
CORS_EXPOSE_HEADERS = ["Location", "Retry-After", "X-Request-ID"]
CSRF_TRUSTED_ORIGINS = [PUBLIC_URL] if "://" in PUBLIC_URL else []
TRUSTED_PROXIES = env.list("TRUSTED_PROXIES", default=[])

_https = PUBLIC_URL.startswith("https://")
if TRUSTED_PROXIES:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
SECURE_SSL_REDIRECT = False if not _https else env.bool("SSL_REDIRECT", default=True)
# Nodes of this machine come by INTERNAL_URL, and a balancer asks how it is, both without TLS.
SECURE_REDIRECT_EXEMPT = [r"^api/workers/", r"^(v2/)?health", r"^metrics$"]
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _https
SECURE_HSTS_SECONDS = 31_536_000 if _https else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = _https
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
SESSION_COOKIE_HTTPONLY = True

UNFOLD = {
    "SITE_TITLE": "FlowML",
    "SITE_HEADER": "FlowML",
    "SHOW_HISTORY": True,
    "DASHBOARD_CALLBACK": "flowml_site.console.dashboard",
    "SITE_FAVICONS": [
        {
            "rel": "icon",
            "type": "image/svg+xml",
            "href": lambda _: static("img/favicon.svg"),
        }
    ],
}

LOGGING_CONFIG = None  # flowml_site.logs sets it up in every process, Celery's included
