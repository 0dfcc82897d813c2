"""Who gets what from every address: one table, walked with everybody, and nothing may be missing.

The columns are what five people get: somebody who is not signed in, a viewer, a developer and an
admin of the organization that the objects belong to, and a stranger, who is an admin of another
one and names the first one's objects. All send the very same request, so that a refusal can't be
for another reason than who asks. ``sign`` is the way to the sign-in page.
"""

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from django.conf import settings
from django.contrib.auth.tokens import default_token_generator
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import call_command
from django.db import transaction
from django.http import HttpResponseBase
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, resolve
from django.utils import timezone
from django.utils.http import urlsafe_base64_encode
from django_otp.oath import totp
from django_otp.plugins.otp_totp.models import TOTPDevice
from drf_spectacular.generators import SchemaGenerator

from accounts import jwt, mail
from accounts.models import PersonalToken, TokenFamily
from clusters import serving as deployed
from clusters.api import protocol
from organizations import exports, invites, service
from organizations.access import SESSION_KEY
from organizations.models import Membership, Role
from pipelines import connecting
from tests.clusters import make as deploying
from tests.factories import (
    PASSWORD,
    MembershipFactory,
    OrganizationFactory,
    UserFactory,
    WorkerFactory,
    make_task,
)
from tests.pipelines import make as piping
from tests.training import make
from training import actions, background, general, named, scoring, serving
from training.learned import Importance
from training.models import BatchPrediction
from workers import joining
from workers.files import store_artifact
from workers.keys import task_token
from workers.models import Task, Worker

pytestmark = pytest.mark.django_db

# {own} is the caller's own data set: for a stranger, one of the other organization.
TABLE = """
method  address                                            anonymous viewer developer admin stranger
GET     /                                                       sign    200     200     200     200
GET     /sign-in                                                 200    302     302     302     302
POST    /sign-in                                                 302    302     302     302     302
GET     /sign-in/code                                            302    302     302     302     302
POST    /sign-in/code                                            302    302     302     302     302
POST    /sign-out                                                302    302     302     302     302
GET     /password/forgotten                                      200    200     200     200     200
POST    /password/forgotten                                      200    200     200     200     200
GET     /password/reset?uid={reset_uid}&token={reset}            200    200     200     200     200
POST    /password/reset?uid={reset_uid}&token={reset}            302    302     302     302     302
GET     /email/resend                                            200    200     200     200     200
POST    /email/resend                                            200    200     200     200     200
GET     /email/verify?token={verification}                       200    200     200     200     200
POST    /email/verify?token={verification}                       302    302     302     302     302
GET     /account                                                sign    200     200     200     200
POST    /account                                                sign    302     302     302     302
GET     /account/password                                       sign    200     200     200     200
POST    /account/password                                       sign    302     302     302     302
GET     /account/tokens                                         sign    200     200     200     200
POST    /account/tokens                                         sign    200     200     200     200
POST    /account/tokens/{token}/revoke                          sign    302     404     404     404
GET     /account/sessions                                       sign    200     200     200     200
POST    /account/sessions/end                                   sign    302     302     302     302
POST    /account/sessions/{session}/end                         sign    302     404     404     404
GET     /account/second-factor                                  sign    200     200     200     200
POST    /account/second-factor                                  sign    302     422     302     302
GET     /sign-up                                                 200    302     302     302     302
POST    /sign-up                                                 302    302     302     302     302
GET     /join                                                    200    200     200     200     200
POST    /join                                                   sign    302     302     302     302
GET     /organization                                           sign    200     200     200     200
POST    /organization/choose/{organization}                     sign    302     302     302     404
GET     /organizations                                          sign    200     200     200     200
POST    /organizations/new                                      sign    302     302     302     302
GET     /organization?tab=usage                                 sign    200     200     200     200
GET     /organization?tab=audit                                 sign    200     200     200     200
POST    /organization/rename                                    sign    403     403     302     302
POST    /organization/members/{member}/role                     sign    403     403     302     302
POST    /organization/members/{member}/remove                   sign    403     403     302     302
POST    /organization/invite                                    sign    403     403     302     302
POST    /organization/invite/withdraw                           sign    403     403     302     302
POST    /organization/transfer                                  sign    403     403     302     302
POST    /organization/exports                                   sign    403     403     302     302
GET     /organization/exports/{export}                          sign    403     403     200     404
POST    /organization/exports/{export}/delete                   sign    403     403     302     404
POST    /organization/delete                                    sign    403     403     302     302
POST    /organization/restore                                   sign    403     403     302     302
POST    /organization/leave                                     sign    302     302     302     302
POST    /organization/tokens                                    sign    403     403     200     200
POST    /organization/tokens/{service}/revoke                   sign    403     403     302     302
GET     /organization/audit.csv                                 sign    403     403     200     200
GET     /data                                                   sign    200     200     200     200
POST    /data/upload                                            sign    403     302     302     302
POST    /data/samples/iris                                      sign    403     302     302     302
GET     /data/{dataset}                                         sign    200     200     200     404
GET     /data/{dataset}?tab=rows                                sign    200     200     200     404
GET     /data/{own}?version={version}                           sign    200     200     200     404
POST    /data/{dataset}/versions                                sign    403     302     302     404
POST    /data/{dataset}/role                                    sign    403     302     302     404
POST    /data/{spare}/delete                                    sign    403     302     302     404
GET     /data/versions/{version}/ingest                         sign    200     200     200     404
GET     /data/versions/{shown}/picture?column=image             sign    200     200     200     404
GET     /data/versions/{version}/rejects                        sign    200     200     200     404
GET     /training                                               sign    200     200     200     200
GET     /training/new                                           sign    403     200     200     200
GET     /training/new?dataset={dataset}                         sign    403     200     200     404
GET     /training/new?dataset={own}&version={version}           sign    403     200     200     404
GET     /training/new?again={job}                               sign    403     200     200     404
POST    /training/new                                           sign    403     302     302     404
GET     /training/new/finding?dataset={dataset}&target=kind     sign    403     200     200     404
GET     /training/new/finding?dataset={own}&version={version}   sign    403     200     200     404
POST    /training/new/check                                     sign    403     200     200     404
POST    /training/new/estimate                                  sign    403     200     200     404
GET     /training/checks/{check}                                sign    403     200     200     404
GET     /training/{job}                                         sign    200     200     200     404
GET     /training/{job}/live                                    sign    200     200     200     404
GET     /training/{job}/leaderboard                             sign    200     200     200     404
GET     /training/{job}/log                                     sign    200     200     200     404
POST    /training/{active}/cancel                               sign    403     302     302     404
POST    /training/{active}/stop                                 sign    403     302     302     404
POST    /training/{active}/front                                sign    403     302     302     404
GET     /models                                                 sign    200     200     200     200
GET     /models/compare?model={model}                           sign    200     200     200     404
GET     /models/compare/differences?model={model}               sign    200     200     200     404
GET     /models/{model}                                         sign    200     200     200     404
GET     /models/{model}?tab=try                                 sign    200     200     200     404
POST    /models/{model}/predict                                 sign    403     200     200     404
POST    /models/{model}/sensitivity                             sign    403     200     200     404
POST    /models/{model}/explain                                 sign    403     200     200     404
GET     /models/{model}/importance                              sign    200     200     200     404
POST    /models/{model}/importance/ask                          sign    403     302     302     404
GET     /models/{model}/dependence                              sign    200     200     200     404
POST    /models/{model}/dependence/ask                          sign    403     302     302     404
GET     /models/{model}/learning-curve                          sign    200     200     200     404
POST    /models/{model}/learning-curve/ask                      sign    403     302     302     404
POST    /models/{model}/predict-file                            sign    403     302     302     404
GET     /models/{model}/download                                sign    200     200     200     404
POST    /models/versions/{name_version}/champion                sign    403     302     302     404
GET     /predictions/{batch}                                    sign    200     200     200     404
GET     /predictions/{batch}/result                             sign    200     200     200     404
GET     /health                                                  200    200     200     200     200
GET     /health/live                                             200    200     200     200     200

GET     /workers                                                sign    200     200     200     200
POST    /workers/join                                           sign    403     403     200     200
POST    /workers/{node}/drain                                   sign    403     403     302     404
POST    /workers/{node}/resume                                  sign    403     403     302     404
POST    /workers/{node}/restart                                 sign    403     403     302     404
POST    /workers/{node}/remove                                  sign    403     403     302     404

GET     /clusters                                               sign    200     200     200     200
GET     /clusters/new                                           sign    403     403     200     200
POST    /clusters/new                                           sign    403     403     302     302
GET     /clusters/{cluster}                                     sign    200     200     200     404
GET     /clusters/{cluster}/history                             sign    200     200     200     404
POST    /clusters/{cluster}/nodes                               sign    403     403     302     404
POST    /clusters/{cluster}/nodes/{node}/remove                 sign    403     403     302     404
POST    /clusters/{bare}/delete                                 sign    403     403     302     404
GET     /deployments                                            sign    200     200     200     200
GET     /deployments/new                                        sign    403     200     200     200
GET     /deployments/new?model={model}                          sign    403     200     200     200
POST    /deployments/new                                        sign    403     302     302     404
GET     /deployments/{deployment}                               sign    200     200     200     404
GET     /deployments/{deployment}/live                          sign    200     200     200     404
GET     /deployments/{deployment}/watch                         sign    200     200     200     404
GET     /deployments/{deployment}/logs                          sign    200     200     200     404
POST    /deployments/{deployment}/change                        sign    403     302     302     404
POST    /deployments/{deployment}/stop                          sign    403     302     302     404
POST    /deployments/{deployment}/start                         sign    403     302     302     404
POST    /deployments/{deployment}/rollback                      sign    403     302     302     404
POST    /deployments/{deployment}/promote                       sign    403     302     302     404
POST    /deployments/{deployment}/abandon                       sign    403     302     302     404
POST    /deployments/{deployment}/canary                        sign    403     302     302     404
GET     /deployments/{deployment}/revise                        sign    403     200     200     404
POST    /deployments/{deployment}/revise                        sign    403     302     302     404
POST    /deployments/{deployment}/unfollow                      sign    403     302     302     404
POST    /deployments/{deployment}/retrain                       sign    403     302     302     404
POST    /deployments/{deployment}/forget                        sign    403     302     302     404
POST    /deployments/{deployment}/delete                        sign    403     302     302     404

GET     /connections                                            sign    200     200     200     200
GET     /connections/new                                        sign    403     403     200     200
POST    /connections/new                                        sign    403     403     302     302
GET     /connections/{connection}                               sign    200     200     200     404
GET     /connections/{connection}/tested                        sign    200     200     200     404
POST    /connections/{connection}/test                          sign    403     302     302     404
POST    /connections/{connection}/change                        sign    403     403     302     404
POST    /connections/{connection}/delete                        sign    403     403     302     404

GET     /experiments                                            sign    200     200     200     200
GET     /experiments/new                                        sign    403     200     200     200
POST    /experiments/new                                        sign    403     302     302     302
GET     /experiments/{experiment}                               sign    200     200     200     404
POST    /experiments/{experiment}/change                        sign    403     302     302     404
POST    /experiments/{experiment}/delete                        sign    403     302     302     404

GET     /api/workers                                             401    200     200     200     200
GET     /api/workers/stats                                       401    200     200     200     200
GET     /api/workers/queues                                      401    200     200     200     200
GET     /api/workers/local/info                                  401    200     200     200     200
GET     /api/workers/{node}                                      401    200     200     200     404
PATCH   /api/workers/{node}                                      401    403     403     200     404
DELETE  /api/workers/{node}                                      401    403     403     204     404
POST    /api/workers/{node}/drain                                401    403     403     202     404
POST    /api/workers/{node}/resume                               401    403     403     202     404
POST    /api/workers/{node}/restart                              401    403     403     202     404
POST    /api/workers/{node}/remove                               401    403     403     202     404
GET     /api/workers/join-tokens                                 401    403     403     200     200
POST    /api/workers/join-tokens                                 401    403     403     201     201
DELETE  /api/workers/join-tokens/{join_token}                    401    403     403     204     404
POST    /api/auth/register                                       201    201     201     201     201
POST    /api/auth/login                                          200    200     200     200     200
POST    /api/auth/refresh                                        200    200     200     200     200
POST    /api/auth/logout                                         204    204     204     204     204
GET     /api/auth/me                                             401    200     200     200     200
PATCH   /api/auth/me                                             401    200     200     200     200
POST    /api/auth/password                                       401    204     204     204     204
POST    /api/auth/password/reset                                 202    202     202     202     202
POST    /api/auth/password/reset/confirm                         204    204     204     204     204
POST    /api/auth/email/resend                                   202    202     202     202     202
POST    /api/auth/email/verify                                   204    204     204     204     204
GET     /api/auth/sessions                                       401    200     200     200     200
DELETE  /api/auth/sessions                                       401    204     204     204     204
DELETE  /api/auth/sessions/{session}                             401    204     404     404     404
GET     /api/auth/second-factor                                  401    200     200     200     200
POST    /api/auth/second-factor                                  401    201     409     201     201
POST    /api/auth/second-factor/confirm                          401    409     409     200     409
POST    /api/auth/second-factor/disable                          401    204     204     204     204
POST    /api/auth/second-factor/recovery-codes                   401    409     200     409     409
GET     /api/auth/tokens                                         401    200     200     200     200
POST    /api/auth/tokens                                         401    201     201     201     201
GET     /api/auth/tokens/{token}                                 401    200     404     404     404
DELETE  /api/auth/tokens/{token}                                 401    204     404     404     404
GET     /api/organizations                                       401    200     200     200     200
POST    /api/organizations                                       401    201     201     201     201
POST    /api/organizations/join                                  401    201     201     201     201
GET     /api/organizations/{organization}                        401    200     200     200     404
PATCH   /api/organizations/{organization}                        401    403     403     200     404
GET     /api/organizations/{organization}/members                401    200     200     200     404
PATCH   /api/organizations/{organization}/members/{member}       401    403     403     200     404
DELETE  /api/organizations/{organization}/members/{member}       401    403     403     204     404
POST    /api/organizations/{organization}/leave                  401    204     204     204     404
POST    /api/organizations/{organization}/transfer               401    403     403     200     404
GET     /api/organizations/{organization}/invite-code            401    403     403     200     404
POST    /api/organizations/{organization}/invite-code            401    403     403     201     404
DELETE  /api/organizations/{organization}/invite-code            401    403     403     204     404
GET     /api/organizations/{organization}/tokens                 401    403     403     200     404
POST    /api/organizations/{organization}/tokens                 401    403     403     201     404
DELETE  /api/organizations/{organization}/tokens/{service}       401    403     403     204     404
GET     /api/organizations/{organization}/exports                401    403     403     200     404
POST    /api/organizations/{organization}/exports                401    403     403     202     404
GET     /api/organizations/{organization}/exports/{export}       401    403     403     200     404
DELETE  /api/organizations/{organization}/exports/{export}       401    403     403     204     404
GET     /api/organizations/{organization}/exports/{export}/download  401 403    403     200     404
POST    /api/organizations/{organization}/deletion               401    403     403     202     404
DELETE  /api/organizations/{closed}/deletion                     401    403     403     200     404
GET     /api/organizations/{organization}/usage                  401    200     200     200     404
GET     /api/organizations/{organization}/audit                  401    403     403     200     404
GET     /api/organizations/{organization}/audit/export           401    403     403     200     404
POST    /api/live-ticket                                         401    201     201     201     201
GET     /api/datasets                                            401    200     200     200     200
POST    /api/datasets/upload                                     401    403     202     202     202
GET     /api/datasets/samples                                    401    200     200     200     200
POST    /api/datasets/samples/iris                               401    403     202     202     202
GET     /api/datasets/{dataset}                                  401    200     200     200     404
PATCH   /api/datasets/{dataset}                                  401    403     200     200     404
DELETE  /api/datasets/{spare}                                    401    403     204     204     404
GET     /api/datasets/{dataset}/preview                          401    200     200     200     404
GET     /api/datasets/{own}/preview?version={version}            401    200     200     200     404
GET     /api/datasets/{pictures}/image                           401    200     200     200     404
GET     /api/datasets/{pictures}/image?version={shown}            401    200     200     200     404
GET     /api/datasets/{dataset}/stats                            401    200     200     200     404
GET     /api/datasets/{own}/stats?version={version}              401    200     200     200     404
GET     /api/datasets/{dataset}/associations                     401    200     200     200     404
GET     /api/datasets/{own}/associations?version={version}       401    200     200     200     404
GET     /api/datasets/{dataset}/versions                         401    200     200     200     404
POST    /api/datasets/{dataset}/versions                         401    403     202     202     404
GET     /api/datasets/{dataset}/rejects                          401    200     200     200     404
GET     /api/datasets/{own}/rejects?version={version}            401    200     200     200     404
GET     /api/training                                            401    200     200     200     200
GET     /api/training?dataset={dataset}                          401    200     200     200     200
POST    /api/training/start                                      401    403     202     202     404
POST    /api/training/check                                      401    403     202     202     404
POST    /api/training/estimate                                   401    403     200     200     404
GET     /api/training/check/{check}                              401    200     200     200     404
GET     /api/training/{job}                                      401    200     200     200     404
GET     /api/training/{job}/progress                             401    200     200     200     404
POST    /api/training/{active}/cancel                            401    403     202     202     404
POST    /api/training/{active}/stop                              401    403     202     202     404
POST    /api/training/{active}/front                             401    403     202     202     404
GET     /api/results/job/{job}/leaderboard                       401    200     200     200     404
GET     /api/results/model/{model}                               401    200     200     200     404
POST    /api/results/model/{model}/predict                       401    403     200     200     404
POST    /api/results/model/{model}/explain                       401    403     200     200     404
GET     /api/results/model/{model}/importance                    401    200     200     200     404
POST    /api/results/model/{model}/importance                    401    403     202     202     404
POST    /api/results/model/{model}/predict?as=file               401    403     202     202     404
GET     /api/results/model/{model}/download                      401    200     200     200     404
GET     /api/results/predictions                                 401    200     200     200     200
GET     /api/results/predictions?model={model}                   401    200     200     200     200
GET     /api/results/predictions/{batch}                         401    200     200     200     404
GET     /api/results/predictions/{batch}/download                401    200     200     200     404
POST    /api/train                                               401    403     202     202     404
GET     /api/models                                              401    200     200     200     200
POST    /api/models                                              401    403     201     201     404
GET     /api/models/{named}                                      401    200     200     200     404
PUT     /api/models/{named}/aliases/{alias}                      401    403     200     200     404
DELETE  /api/models/{named}/aliases/{alias}                      401    403     204     204     404
POST    /api/predict/all                                         401    403     200     200     200
POST    /api/predict/all/{dataset}                               401    403     200     200     404
POST    /api/predict/{named}                                     401    403     200     200     404
GET     /api/metrics/all                                         401    200     200     200     200
GET     /api/metrics/{named}                                     401    200     200     200     404
GET     /api/visualization/all                                   401    200     200     200     200
GET     /api/visualization/{named}/learning_curve                401    409     202     202     404
GET     /api/visualization/{named}/roc                           401    202     202     202     404
GET     /api/jobs                                                401    200     200     200     200
POST    /api/jobs/training                                       401    403     202     202     404
POST    /api/jobs/inference                                      401    403     202     202     404
GET     /api/jobs/{request}/status                               401    200     200     200     404
GET     /api/stats/overview                                      401    200     200     200     200
GET     /api/stats/jobs                                          401    200     200     200     200
GET     /api/stats/models                                        401    200     200     200     200
GET     /api/clusters                                            401    200     200     200     200
POST    /api/clusters                                            401    403     403     201     201
GET     /api/clusters/{cluster}                                  401    200     200     200     404
PATCH   /api/clusters/{cluster}                                  401    403     403     200     404
DELETE  /api/clusters/{bare}                                     401    403     403     204     404
GET     /api/clusters/{cluster}/history                          401    200     200     200     404
POST    /api/clusters/{cluster}/nodes                            401    403     403     200     404
DELETE  /api/clusters/{cluster}/nodes/{node}                     401    403     403     204     404
GET     /api/deployments                                         401    200     200     200     200
GET     /api/deployments?cluster={cluster}                       401    200     200     200     200
POST    /api/deployments                                         401    403     201     201     404
GET     /api/deployments/{deployment}                            401    200     200     200     404
PATCH   /api/deployments/{deployment}                            401    403     200     200     404
DELETE  /api/deployments/{deployment}                            401    403     204     204     404
POST    /api/deployments/{deployment}/stop                       401    403     202     202     404
POST    /api/deployments/{deployment}/start                      401    403     202     202     404
POST    /api/deployments/{deployment}/rollback                   401    403     202     202     404
POST    /api/deployments/{deployment}/promote                    401    403     202     202     404
POST    /api/deployments/{deployment}/abandon                    401    403     202     202     404
POST    /api/deployments/{deployment}/retrain                    401    403     202     202     404
GET     /api/deployments/{deployment}/revisions                  401    200     200     200     404
GET     /api/deployments/{deployment}/events                     401    200     200     200     404
GET     /api/deployments/{deployment}/metrics                    401    200     200     200     404
GET     /api/deployments/{deployment}/logs                       401    200     200     200     404
GET     /api/deployments/{deployment}/drift                      401    200     200     200     404
GET     /api/deployments/{deployment}/feedback                   401    200     200     200     404
POST    /api/deployments/{deployment}/feedback                   401    403     200     200     404
POST    /api/deployments/{deployment}/predict                    401    403     200     200     404
GET     /api/connections                                         401    200     200     200     200
POST    /api/connections                                         401    403     403     201     201
GET     /api/connections/{connection}                            401    200     200     200     404
PATCH   /api/connections/{connection}                            401    403     403     200     404
DELETE  /api/connections/{connection}                            401    403     403     204     404
GET     /api/connections/{connection}/test                       401    200     200     200     404
POST    /api/connections/{connection}/test                       401    403     202     202     404
GET     /api/experiments                                         401    200     200     200     200
POST    /api/experiments                                         401    403     201     201     201
GET     /api/experiments/{experiment}                            401    200     200     200     404
PATCH   /api/experiments/{experiment}                            401    403     200     200     404
DELETE  /api/experiments/{experiment}                            401    403     204     204     404
GET     /api/experiments/{experiment}/versions                   401    200     200     200     404
GET     /pipelines                                              sign    200     200     200     200
GET     /pipelines/new                                          sign    403     200     200     200
POST    /pipelines/new                                          sign    403     302     302     302
GET     /pipelines/{pipeline}                                   sign    200     200     200     404
GET     /pipelines/{pipeline}/edit                              sign    403     200     200     404
POST    /pipelines/{pipeline}/edit                              sign    403     302     302     404
POST    /pipelines/{pipeline}/run                               sign    403     302     302     404
POST    /pipelines/{pipeline}/switch                            sign    403     302     302     404
POST    /pipelines/{idle}/delete                                sign    403     302     302     404
GET     /pipelines/runs/{run}                                   sign    200     200     200     404
GET     /pipelines/runs/{run}/live                              sign    200     200     200     404
POST    /pipelines/runs/{run}/cancel                            sign    403     302     302     404
POST    /pipelines/runs/{ended}/retry                           sign    403     302     302     404
GET     /api/workflow/tasks                                      401    200     200     200     200
POST    /api/workflow/tasks                                      401    403     202     202     404
GET     /api/workflow/tasks/{workflow}                           401    200     200     200     404
GET     /api/pipelines                                           401    200     200     200     200
POST    /api/pipelines                                           401    403     201     201     201
GET     /api/pipelines/{pipeline}                                401    200     200     200     404
PATCH   /api/pipelines/{pipeline}                                401    403     200     200     404
DELETE  /api/pipelines/{idle}                                    401    403     204     204     404
GET     /api/pipelines/{pipeline}/runs                           401    200     200     200     404
POST    /api/pipelines/{pipeline}/runs                           401    403     202     202     404
GET     /api/pipelines/{pipeline}/runs/{run}                     401    200     200     200     404
POST    /api/pipelines/{pipeline}/runs/{run}/cancel              401    403     202     202     404
POST    /api/pipelines/{pipeline}/runs/{ended}/retry             401    403     202     202     404
GET     /api/pipelines/{pipeline}/runs/{run}/logs                401    200     200     200     404
GET     /api/pipelines/{pipeline}/runs/{run}/log.txt             401    200     200     200     404
GET     /v2                                                      200    200     200     200     200
GET     /v2/health/live                                          200    200     200     200     200
GET     /v2/health/ready                                         200    200     200     200     200
GET     /v2/models/{served}                                      401    200     200     200     404
GET     /v2/models/{served}/ready                                401    200     200     200     404
POST    /v2/models/{served}/infer                                401    403     200     200     404
"""

# What nodes say. People get 401 from all of it, whoever they are. The other columns: a node with
# its token, the token of the task in the address, and that of a task of another organization.
NODES = """
method  address                                              people    node    task   other
POST    /api/workers/register                                   401     201     201     201
POST    /api/workers/heartbeat                                  401     200     403     403
POST    /api/workers/claim                                      401     204     403     403
POST    /api/workers/tasks/{task}/events                        401     403     200     403
POST    /api/workers/tasks/{task}/end                           401     403     200     403
PUT     /api/workers/tasks/{task}/artifacts/model.zip           401     403     201     403
GET     /api/workers/artifacts/{artifact}                       401     200     200     403
GET     /api/workers/replicas/{replica}                         401     200     403     403
POST    /api/workers/replicas/{replica}/log                     401     204     403     403
"""

ELSEWHERE = {
    "admin/": "Django's admin asks for staff by itself: test_the_admin_is_for_staff",
    "api/organizations/": "the list of organizations, as some write its address",
    "api/clusters/": "the list of clusters, as some write its address",
    "api/connections/": "the list of connections, as some write its address",
    "api/experiments/": "the list of experiments, as some write its address",
    "api/deployments/": "the list of deployments, as some write its address",
    "api/deployments/<uuid:pk>/http": "tokens alone get in: tests/clusters/test_containers.py",
    "api/deployments/<uuid:pk>/http/": "the same",
    "api/deployments/<uuid:pk>/http/<path:path>": "the same",
    "api/pipelines/": "the list of pipelines, as some write its address",
    "api/pipelines/<uuid:pk>/runs/": "the list of runs, as some write its address",
    "api/pipelines/<uuid:pk>/runs/<uuid:run>/": "a run, as some write its address",
    "admin/login/": "leads to the sign-in page: test_the_console_has_no_way_in_of_its_own",
    "metrics": "for staff and Prometheus: tests/platform/test_metrics.py",
    "api/workers/join.sh": "for a machine with a join token: tests/workers/test_bootstrap.py",
    "api/workers/bundle": "for a machine with a join token: tests/workers/test_bootstrap.py",
    "api/schema": "the API's description, the same for everybody",
    "api/docs": "draws the description",
    "api/redoc": "draws the description",
}
PEOPLE = ("anonymous", "viewer", "developer", "admin", "stranger")
# For everybody, or of nobody's organization, whatever the header says.
OPEN = re.compile(r"/(api/auth/|sign-|account|password/|email/|health|v2$|v2/health)")
MARK = "kept-apart"  # in the names of all that the first organization has


@dataclass(frozen=True)
class Row:
    method: str
    address: str
    expected: dict[str, str]

    def __str__(self) -> str:
        return f"{self.method} {self.address}"

    @property
    def for_all(self) -> bool:
        return bool(OPEN.match(self.address))


def rows_of(table: str) -> list[Row]:
    head, *lines = [line.split() for line in table.strip().splitlines() if line]
    return [Row(line[0], line[1], dict(zip(head[2:], line[2:], strict=True))) for line in lines]


ROWS, NODE_ROWS = rows_of(TABLE), rows_of(NODES)


@dataclass
class World:
    """Two organizations, what the first one has, and who knocks."""

    people: dict[str, Membership | None]
    ids: dict[str, Any]
    own: dict[str, Any]
    refresh: str
    code: str  # joins a third organization
    count: int = 0
    cookies: dict[str, Any] = field(default_factory=dict)

    def client(self, who: str) -> Client:
        """A browser of theirs, signed in, whatever an earlier one did."""
        client = Client(raise_request_exception=False)
        if who not in self.cookies:
            if member := self.people[who]:
                client.force_login(member.user)
            self.cookies[who] = client.cookies
        client.cookies = self.cookies[who].copy()
        return client

    def path(self, row: Row, who: str) -> str:
        own = self.own["stranger" if who == "stranger" else "member"]
        return row.address.format(**self.ids, own=own)

    def send(self, row: Row, who: str, **more: Any) -> HttpResponseBase:
        self.count += 1
        given: dict[str, Any] = {"content_type": "application/json"} if _api(row) else {}
        if make_body := BODIES.get(str(row)):
            given["data"] = make_body(self)
            if any(isinstance(value, SimpleUploadedFile) for value in given["data"].values()):
                given.pop("content_type", None)
        if row.method == "GET":
            given = {}
        call = getattr(self.client(who), row.method.lower())
        return undone(lambda: call(self.path(row, who), **given, **more))


def _api(row: Row) -> bool:
    return row.address.startswith(("/api/", "/v2"))


def undone(act: Callable[[], HttpResponseBase]) -> HttpResponseBase:
    """Do something and take it back, so that the next caller finds the same."""
    with transaction.atomic():
        answer = act()
        transaction.set_rollback(True)
    return answer


def a_file(_: World) -> dict[str, Any]:
    return {"file": SimpleUploadedFile("t.csv", make.flowers(30).write_csv().encode())}


def a_person(world: World) -> dict[str, Any]:
    name = f"new{world.count}"
    return {"username": name, "email": f"{name}@example.org", "password": "a long way home 7"}


def a_password(world: World) -> dict[str, Any]:
    member = world.people["viewer"]
    assert member is not None
    return {"username": member.user.get_username(), "password": PASSWORD}


def a_code(world: World) -> dict[str, Any]:
    return {"code": world.code}


def an_address(world: World) -> dict[str, Any]:
    return {"email": f"nobody{world.count}@example.org"}


def two_passwords(_: World) -> dict[str, Any]:
    return {"current_password": PASSWORD, "new_password": NEW_PASSWORD}


def an_export(admin: Membership) -> Any:
    made = exports.ask(admin)
    exports.build(made.pk)
    return made.pk


def a_closed_one(people: dict[str, Membership | None]) -> Any:
    """Another organization of the members, which is about to be deleted."""
    home = OrganizationFactory(name=f"{MARK} closed", delete_after=timezone.now() + timedelta(1))
    for member in filter(None, [people[who] for who in ("viewer", "developer", "admin")]):
        MembershipFactory(organization=home, user=member.user, role=member.role)
    return home.pk


def a_deployment(world: World) -> dict[str, Any]:
    return {
        "name": "new",
        "model": str(world.ids["model"]),
        "cluster_id": str(world.ids["cluster"]),
        "depends_on": [str(world.ids["deployment"])],
    }


def a_wish(world: World) -> dict[str, Any]:
    return {"dataset": str(world.ids["dataset"]), "target": "kind"}


def a_workflow(world: World) -> dict[str, Any]:
    return {"name": "new", "experiment_id": str(world.ids["job"]), **piping.SIX}


NEW_PASSWORD = "another way home 8"
ROW = {"petal_cm": 1.0, "colour": "red", "weight_g": 50.0}
BODIES: dict[str, Callable[[World], dict[str, Any]]] = {
    "POST /sign-in": a_password,
    "POST /sign-up": a_person,
    "POST /join": a_code,
    "POST /organizations/new": lambda _: {"name": "new"},
    "POST /organization/rename": lambda _: {"name": "new"},
    "POST /organization/tokens": lambda _: {"name": "new", "actions": "read"},
    "POST /api/organizations": lambda _: {"name": "new"},
    "POST /api/organizations/join": a_code,
    "PATCH /api/organizations/{organization}": lambda _: {"name": "new"},
    "PATCH /api/organizations/{organization}/members/{member}": lambda _: {"role": "viewer"},
    "POST /api/organizations/{organization}/transfer": lambda world: {
        "user": str(world.ids["member"])
    },
    "POST /api/organizations/{organization}/deletion": lambda _: {"name": MARK},
    "POST /api/organizations/{organization}/tokens": lambda world: {
        "name": "new",
        "model": str(world.ids["model"]),
    },
    "POST /api/organizations/{organization}/invite-code": lambda _: {"role": "developer"},
    "POST /api/auth/register": a_person,
    "POST /api/auth/login": a_password,
    "POST /api/auth/refresh": lambda world: {"refresh": world.refresh},
    "POST /api/auth/tokens": lambda _: {"name": "mine"},
    "POST /password/forgotten": an_address,
    "POST /password/reset?uid={reset_uid}&token={reset}": lambda _: {"password": NEW_PASSWORD},
    "POST /email/resend": an_address,
    "POST /account": lambda _: {"first_name": "Vi", "last_name": ""},
    "POST /account/password": two_passwords,
    "POST /account/tokens": lambda _: {"name": "mine", "scope": "read", "days": "7"},
    "POST /account/second-factor": lambda _: {"do": "begin", "password": PASSWORD},
    "POST /api/auth/logout": lambda world: {"refresh": world.refresh},
    "PATCH /api/auth/me": lambda _: {"first_name": "Vi"},
    "POST /api/auth/password": two_passwords,
    "POST /api/auth/password/reset": an_address,
    "POST /api/auth/password/reset/confirm": lambda world: {
        "uid": world.ids["reset_uid"],
        "token": world.ids["reset"],
        "password": NEW_PASSWORD,
    },
    "POST /api/auth/email/resend": an_address,
    "POST /api/auth/email/verify": lambda world: {"token": world.ids["verification"]},
    "POST /api/auth/second-factor": lambda _: {"password": PASSWORD},
    "POST /api/auth/second-factor/confirm": lambda world: {"code": world.ids["code"]},
    "POST /api/auth/second-factor/disable": lambda _: {"password": PASSWORD},
    "POST /api/auth/second-factor/recovery-codes": lambda _: {"password": PASSWORD},
    "POST /data/upload": a_file,
    "POST /data/{dataset}/versions": a_file,
    "POST /data/{dataset}/role": lambda _: {"column": "petal_cm", "role": "categorical"},
    "POST /training/new": a_wish,
    "POST /training/new/check": a_wish,
    "POST /training/new/estimate": a_wish,
    "POST /models/{model}/predict": lambda _: {"column-0": "1", "column-1": "red", "column-2": "2"},
    "POST /models/{model}/explain": lambda _: {"column-0": "1", "column-1": "red", "column-2": "2"},
    "POST /models/{model}/predict-file": a_file,
    "POST /api/datasets/upload": a_file,
    "PATCH /api/datasets/{dataset}": lambda _: {"description": "changed"},
    "POST /api/datasets/{dataset}/versions": a_file,
    "POST /api/training/start": a_wish,
    "POST /api/training/check": a_wish,
    "POST /api/training/estimate": a_wish,
    "POST /api/train": lambda world: a_wish(world) | {"models": ["knn"]},
    "POST /api/models": lambda world: {"name": "new", "model": str(world.ids["model"])},
    "PUT /api/models/{named}/aliases/{alias}": lambda _: {"version": 1},
    "POST /api/predict/all": lambda _: {"features": [ROW]},
    "POST /api/predict/all/{dataset}": lambda _: {"features": [ROW]},
    "POST /api/predict/{named}": lambda _: {"features": [ROW]},
    "POST /api/jobs/training": lambda world: a_wish(world) | {"model_type": "knn"},
    "POST /api/jobs/inference": lambda world: {"model_id": world.ids["named"], "input_data": ROW},
    "POST /api/results/model/{model}/predict": lambda _: {"rows": [ROW]},
    "POST /api/results/model/{model}/explain": lambda _: {"row": ROW},
    "POST /api/results/model/{model}/predict?as=file": a_file,
    "POST /api/workflow/tasks": a_workflow,
    "POST /api/pipelines": lambda _: {"name": "new", "definition": {"stages": piping.TELLS}},
    "PATCH /api/pipelines/{pipeline}": lambda _: {"description": "changed"},
    "POST /pipelines/new": lambda _: {"name": "new", "definition": piping.TEXT},
    "POST /pipelines/{pipeline}/edit": lambda _: {"name": "changed", "definition": piping.TEXT},
    "POST /connections/new": lambda _: {"kind": "duckdb", "name": "new"},
    "POST /connections/{connection}/change": lambda _: {"name": "changed"},
    "POST /api/connections": lambda _: {"kind": "duckdb", "name": "new"},
    "PATCH /api/connections/{connection}": lambda _: {"name": "changed"},
    "POST /experiments/new": lambda _: {"name": "new", "config": piping.CONFIG},
    "POST /experiments/{experiment}/change": lambda _: {"name": "new", "config": piping.CONFIG},
    "POST /api/experiments": lambda _: {"name": "new", "config": piping.CONFIG},
    "PATCH /api/experiments/{experiment}": lambda _: {"name": "changed"},
    "POST /clusters/new": lambda _: {"name": "new"},
    "POST /clusters/{cluster}/nodes": lambda world: {"node": str(world.ids["node"])},
    "POST /deployments/new": lambda world: {
        key: value for key, value in a_deployment(world).items() if key != "depends_on"
    },
    "POST /deployments/{deployment}/canary": lambda _: {"percent": "30"},
    "POST /deployments/{deployment}/revise": lambda _: {"env": "A=2"},
    "POST /deployments/{deployment}/change": lambda _: {"replicas": "2", "priority": "HIGH"},
    "POST /api/clusters": lambda _: {"name": "new"},
    "PATCH /api/clusters/{cluster}": lambda _: {"total_ram_gb": 4},
    "POST /api/clusters/{cluster}/nodes": lambda world: {"node_id": str(world.ids["node"])},
    "POST /api/deployments": a_deployment,
    "PATCH /api/deployments/{deployment}": lambda _: {"replicas": 2},
    "POST /api/deployments/{deployment}/predict": lambda _: {"rows": [ROW]},
    "POST /api/deployments/{deployment}/feedback": lambda _: {
        "outcomes": [{"id": "00000000-0000-4000-8000-000000000000", "truth": "kind 1"}]
    },
    "POST /v2/models/{served}/infer": lambda _: {
        "inputs": [
            {"name": name, "shape": [1], "datatype": kind, "data": [ROW[name]]}
            for name, kind in (("petal_cm", "FP64"), ("colour", "BYTES"), ("weight_g", "FP64"))
        ]
    },
}


def a_connection(admin: Membership) -> Any:
    """One that was tested."""
    made = piping.connection(admin, f"{MARK} connection")
    tested = connecting.test(admin, made).task
    Task.objects.filter(pk=tested).update(state="succeeded", finished_at=timezone.now())
    return made.pk


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    admin = make.member(Role.ADMIN, organization__name=MARK)
    people: dict[str, Membership | None] = {
        "anonymous": None,
        "viewer": make.member(Role.VIEWER, organization=admin.organization),
        "developer": make.member(Role.DEVELOPER, organization=admin.organization),
        "admin": admin,
        "stranger": make.member(Role.ADMIN),
    }
    serving_node = make.FakeServing(tmp_path)
    later = timezone.now() + timedelta(hours=1)  # the walk takes longer than a lease
    node = WorkerFactory(address=serving_node.address, last_seen_at=later)
    version = make.version(admin, name=f"{MARK} data")
    version.rejects = store_artifact(
        admin.organization, "rejects", io.BytesIO(b"line,reason,raw\n")
    )
    version.associations = {
        "columns": ["petal_cm", "kind"], "left_out": 0, "rows": 150,
        "pairs": [[0, 1, "correlation_ratio", 0.9, None, 150]],
    }  # fmt: skip
    version.save()
    spare = make.version(admin, name=f"{MARK} spare")
    pictures = pl.DataFrame({"image": [b"\x89PNG"], "label": ["cat"]})
    shown = make.version(admin, pictures, name=f"{MARK} pictures")
    own_node = WorkerFactory(
        organization=admin.organization,
        name=f"{MARK}-node",
        last_seen_at=later,
        address=serving_node.address,
    )
    join_token = joining.make_join_token(admin.organization, by=admin.user)[0]
    model = make.scored_model(admin, of=version, name=f"{MARK} job")
    background.choose(model.job_id)
    Importance.objects.update(state="failed")  # so that asking for it changes something
    name_version = named.give_name(admin, f"{MARK}-tree", model)
    name = name_version.named.name
    named.move_alias(admin, name, f"{MARK}-alias", 1)
    upload = SimpleUploadedFile(f"{MARK}.csv", b"a\n1\n")
    batch = actions.predict_file(admin, model, upload)
    result = store_artifact(admin.organization, "csv", io.BytesIO(b"a,prediction\n1,x\n"))
    BatchPrediction.objects.filter(pk=batch.pk).update(csv=result, state="succeeded")
    Task.objects.filter(pk=batch.task_id).delete()
    cluster = deploying.cluster(admin, own_node, name=f"{MARK}-cluster")
    deployment = deploying.running(admin, model, f"{MARK}-deployment", own_node)
    tried = deployment.revisions.get(number=1)
    follows = f"{name}@{MARK}-alias"
    type(deployment).objects.filter(pk=deployment.pk).update(canary=tried, follows=follows)
    chain = piping.pipeline(admin, piping.TRAINS, f"{MARK} pipeline")
    run, ended = (piping.run_of(chain, state) for state in ("running", "failed"))
    stranger = people["stranger"]
    viewer = people["viewer"]
    assert stranger is not None
    assert viewer is not None
    refresh = jwt.issue(viewer.user)["refresh"]
    forgetful = UserFactory()
    developer = people["developer"]
    assert developer is not None
    TOTPDevice.objects.create(user=developer.user, confirmed=True)
    pending = TOTPDevice.objects.create(user=admin.user, confirmed=False)
    yield World(
        people,
        {
            "organization": admin.organization_id,
            "member": make.member(Role.ADMIN, organization=admin.organization).user_id,
            "export": an_export(admin),
            "closed": a_closed_one(people),
            "service": service.make(admin, name=f"{MARK} token")[0].pk,
            "dataset": version.dataset_id,
            "version": version.pk,
            "spare": spare.dataset_id,
            "pictures": shown.dataset_id,
            "shown": shown.pk,
            "job": model.job_id,
            "active": make.job(admin, of=version, name=f"{MARK} active").pk,
            "check": actions.check_data(admin, version.dataset_id, target="kind").pk,
            "model": model.pk,
            "named": name,
            "name_version": name_version.pk,
            "request": general.infer(admin, model_id=name, input_data=ROW).pk,
            "alias": f"{MARK}-alias",
            "batch": batch.pk,
            "node": own_node.pk,
            "cluster": cluster.pk,
            "bare": deploying.cluster(admin, name=f"{MARK}-bare").pk,
            "deployment": deployment.pk,
            "served": deployment.name,
            "pipeline": chain.pk,
            "workflow": piping.workflow_of(admin, model.job_id, f"{MARK} six").pk,
            "idle": piping.pipeline(admin, piping.TRAINS, f"{MARK} idle").pk,
            "run": run.pk,
            "ended": ended.pk,
            "connection": a_connection(admin),
            "experiment": piping.experiment(admin, f"{MARK} clicks").pk,
            "join_token": join_token.pk,
            "token": PersonalToken.issue(user=viewer.user, name=MARK)[0].pk,
            "session": TokenFamily.objects.get(user=viewer.user).pk,
            "code": f"{totp(pending.bin_key):06}",
            "reset_uid": urlsafe_base64_encode(str(forgetful.pk).encode()),
            "reset": default_token_generator.make_token(forgetful),
            "verification": mail.verification(viewer.user, viewer.user.email),
        },
        {"member": version.dataset_id, "stranger": make.version(stranger).dataset_id},
        refresh,
        invites.renew(make.member(Role.ADMIN)).code,
    )
    serving_node.stop()
    scoring._kept.clear()
    serving._pool = serving._Pool()
    serving._models.clear()
    serving._nodes.clear()
    deployed._places.clear()
    protocol._ids.clear()
    assert node.pk


def body_of(answer: Any) -> str:
    return "" if answer.streaming else answer.content.decode()


def judge(row: Row, expected: str, answer: HttpResponseBase) -> str:
    """What is wrong with the answer, or nothing."""
    place = answer.headers.get("Location", "")
    to_sign_in = answer.status_code == 302 and place.startswith("/sign-in?next=/")
    got = "sign" if to_sign_in else str(answer.status_code)
    return "" if got == expected else f"{row}: {got} instead of {expected}. {body_of(answer)[:300]}"


# --- People --------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", PEOPLE)
def test_everybody_gets_what_the_table_says(who: str, world: World) -> None:
    problems = []
    for row in ROWS:
        answer = world.send(row, who)
        problems.append(judge(row, row.expected[who], answer))
        if who in {"anonymous", "stranger"}:
            problems += leaks(world, row, who, answer)
    assert not any(problems), "\n".join(filter(None, problems))


def leaks(world: World, row: Row, who: str, answer: HttpResponseBase) -> list[str]:
    """Names or ids of the first organization in an answer to somebody who did not send them."""
    told = body_of(answer) + str(answer.headers)
    sent = world.path(row, who) + str(BODIES.get(str(row), lambda _: {})(world))
    known = [MARK, *(str(one) for one in world.ids.values())]
    return [f"{row} tells {who} of {word}" for word in known if word in told and word not in sent]


def test_another_organization_in_the_header_or_the_session_opens_nothing(world: World) -> None:
    foreign = str(world.ids["organization"])
    session = world.client("stranger").session
    session[SESSION_KEY] = foreign
    session.save()
    problems = []
    for row in ROWS:
        answer = world.send(row, "stranger", headers={"X-Organization": foreign})
        expected = "404" if _api(row) and not row.for_all else row.expected["stranger"]
        problems.append(judge(row, expected, answer))
        problems += leaks(world, row, "stranger", answer)
    assert not any(problems), "\n".join(filter(None, problems))


def test_no_address_answers_to_a_method_that_the_table_does_not_name(world: World) -> None:
    named: dict[str, set[str]] = {}
    for row in ROWS:
        named.setdefault(resolve(world.path(row, "admin").split("?")[0]).route, set()).add(
            row.method
        )
    problems = []
    for row in ROWS:
        path = world.path(row, "admin").split("?")[0]
        left = {"GET", "POST", "PUT", "PATCH", "DELETE"} - named.pop(resolve(path).route, set())
        if resolve(path).route in named or len(left) == 5:
            continue  # another row of the same address did it
        for method in sorted(left):
            call = getattr(world.client("admin"), method.lower())
            status = undone(lambda call=call, path=path: call(path)).status_code
            if status not in {403, 405}:
                problems.append(f"{method} {row.address}: {status}")
    assert not problems, "\n".join(problems)


def test_the_table_shows_a_success_for_each_refusal() -> None:
    for row in [*ROWS, *NODE_ROWS]:
        assert any(status[0] in "23" for status in row.expected.values()), f"{row} proves nothing"


# --- Nodes ---------------------------------------------------------------------------------------


@pytest.fixture
def nodes() -> dict[str, Any]:
    """A node that runs a task with an input, and another organization's task that runs too."""
    worker = WorkerFactory(token_hash=Worker.hash_token("the node's"), concurrency=2)
    task, other = make_task(), make_task()
    data = store_artifact(task.organization, "data", io.BytesIO(b"rows"))
    Task.objects.filter(pk=task.pk).update(inputs={"data": str(data.pk)})
    node = make.Node(worker)
    node.claim(), node.claim()
    admin = make.member(Role.ADMIN, organization=task.organization)
    model = deploying.model(admin)
    deploying.cluster(admin, name="main", nodes=[worker.pk], operator=True)
    deployment = deploying.running(admin, model, "one", worker)
    return {
        "replica": deployment.placed.get(ended_at=None).pk,
        "task": task.pk,
        "artifact": data.pk,
        "tokens": {
            "node": "Worker the node's",
            "task": f"Task {task_token(task.pk, 1)}",
            "other": f"Task {task_token(other.pk, 1)}",
        },
    }


def said_by_nodes(row: Row) -> Any:
    if row.method == "PUT":
        return b"a model"
    if row.address.endswith("register"):
        capabilities = {"cpu": 2, "ram_mib": 4096, "engines": []}
        return {"name": "new", "capabilities": capabilities, "join_token": settings.JOIN_TOKEN}
    if row.address.endswith("/log"):
        return {"generation": 1, "lines": [["2026-01-01T00:00:00Z", "hello"]]}
    room = {"slots": 1, "light_slots": 1, "cpu_millis": 2000, "ram_mib": 4096}
    return {"attempt": 1, "events": [], "outcome": "succeeded", "running": [], "room": room}


@pytest.mark.parametrize("who", ["people", "node", "task", "other"])
def test_nodes_get_what_their_table_says(who: str, nodes: dict[str, Any]) -> None:
    tokens = nodes.pop("tokens")
    callers = [Client()]
    if who == "people":
        for role in Role.values:
            callers.append(Client())
            callers[-1].force_login(make.member(role).user)
    problems = []
    for row in NODE_ROWS:
        body = said_by_nodes(row)
        if who == "people" and row.address.endswith("register"):
            body["join_token"] = "guessed"
        kind = "application/octet-stream" if row.method == "PUT" else "application/json"
        headers = {} if who == "people" else {"Authorization": tokens[who]}
        path = row.address.format(**nodes)
        for client in callers:
            call = getattr(client, row.method.lower())
            more = {} if row.method == "GET" else {"data": body, "content_type": kind}
            answer = undone(
                lambda call=call, path=path, headers=headers, more=more: call(
                    path, headers=headers, **more
                )
            )
            problems.append(judge(row, row.expected[who], answer))
    assert not any(problems), "\n".join(filter(None, problems))


def test_tokens_of_nodes_open_nothing_of_peoples(world: World, nodes: dict[str, Any]) -> None:
    for token in nodes["tokens"].values():
        for row in ROWS:
            if _api(row) and not row.for_all:
                answer = world.send(row, "anonymous", headers={"Authorization": token})
                assert answer.status_code == 401, row


# --- Everything is in the tables -----------------------------------------------------------------


def all_routes(patterns: list[Any] | None = None, prefix: str = "") -> Iterator[str]:
    for one in get_resolver().url_patterns if patterns is None else patterns:
        route = prefix + str(one.pattern)
        if isinstance(one, URLResolver) and route != "admin/":
            yield from all_routes(one.url_patterns, route)
        else:
            assert isinstance(one, URLPattern | URLResolver)
            yield route


def test_every_address_is_in_a_table() -> None:
    names = set(re.findall(r"{(\w+)}", TABLE + NODES))
    made_up = dict.fromkeys(names, "00000000-0000-4000-8000-000000000000")
    named = {resolve(r.address.format(**made_up).split("?")[0]).route for r in [*ROWS, *NODE_ROWS]}
    routes = set(all_routes())
    missing = sorted(routes - named - set(ELSEWHERE))
    assert not missing, f"not in the table of {__name__}: {', '.join(missing)}"
    assert set(ELSEWHERE) <= routes


def test_the_schema_has_no_warnings_and_only_what_the_table_has(tmp_path: Path) -> None:
    call_command("spectacular", "--fail-on-warn", "--validate", file=str(tmp_path / "schema.yml"))
    generator = SchemaGenerator()
    paths = generator.get_schema(request=None, public=True)["paths"]
    shape = re.compile(r"\{[^}]*\}|(?<=samples/)iris")
    known = {shape.sub("{}", f"{row.method} {row.address.split('?')[0]}") for row in ROWS}
    told = {
        shape.sub("{}", f"{method.upper()} {path}")
        for path, methods in paths.items()
        for method in methods
    }
    assert told == {one for one in known if " /api/" in one or " /v2" in one}
    for address in ("/api/schema", "/api/docs", "/api/redoc"):
        assert Client().get(address).status_code == 200, address


def test_the_admin_is_for_staff() -> None:
    admin = make.member(Role.ADMIN)
    for staff, status in ((False, 302), (True, 200)):
        admin.user.is_staff = admin.user.is_superuser = staff
        admin.user.save()
        client = Client()
        client.force_login(admin.user)
        for path in ("/admin/", "/admin/workers/task/", "/admin/accounts/user/"):
            assert client.get(path).status_code == status, path
