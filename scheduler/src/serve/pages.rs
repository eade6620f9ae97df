//! What a browser or `curl` sees: a short page, and whether we serve.

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, HeaderName, StatusCode};
use tokio::sync::watch;
use tonic::Status;

const PAGE: &str = concat!(
    "Tessera ",
    env!("CARGO_PKG_VERSION"),
    ", the scheduler of a GPU cluster.

It is spoken to by the command line, over gRPC on this same port:

    export TESSERA_CONFIG=DATA/client.toml   # DATA: the scheduler's --data folder
    tessera nodes                            # what there is
    tessera submit --gpus 1 -- nvidia-smi    # a first job
    tessera queue                            # who runs, who waits and why
    tessera logs -f JOB                      # what it writes
    tessera usage --by team                  # who held what, at what price

Every verb has --help. /healthz says whether the scheduler serves.
"
);

/// `serving`: whether we do.
pub fn router(serving: watch::Receiver<bool>) -> Router {
    let health = async move || match *serving.borrow() {
        true => text(StatusCode::OK, "ok\n"),
        false => text(StatusCode::SERVICE_UNAVAILABLE, "the scheduler does not serve\n"),
    };
    Router::new()
        .route("/", get(async || text(StatusCode::OK, PAGE)))
        .route("/healthz", get(health))
        .fallback(nothing_here)
}

/// No such page; a gRPC client hears it in its own words.
async fn nothing_here(request: Request) -> Response {
    let is_grpc = request
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
    if is_grpc {
        return Status::unimplemented("there is no such service").into_http::<Body>();
    }
    text(StatusCode::NOT_FOUND, "there is no such page; / says what there is\n")
}

fn text(status: StatusCode, body: &'static str) -> Response {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("content-type", "text/plain; charset=utf-8"),
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("content-security-policy", "default-src 'none'"),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    (status, headers, body).into_response()
}
