//! Refusals as gRPC statuses, and back.
//!
//! The status code is for any client, `google.rpc.ErrorInfo` (domain `tessera`) for ours: it has
//! the kind as `reason`, and `field` and `hint` as metadata. A status that did not come from a
//! Tessera door, above all one made by the transport, becomes a refusal that says what to check.

use std::collections::HashMap;

use tessera_model::{Refusal, RefusalKind};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::door::clip;

const DOMAIN: &str = "tessera";

/// One row for each kind: what it is called in `ErrorInfo.reason`, and its status code.
const KINDS: [(RefusalKind, &str, Code); 9] = [
    (RefusalKind::Invalid, "INVALID", Code::InvalidArgument),
    (RefusalKind::NotFound, "NOT_FOUND", Code::NotFound),
    (RefusalKind::Precondition, "PRECONDITION", Code::FailedPrecondition),
    (RefusalKind::AlreadyExists, "ALREADY_EXISTS", Code::AlreadyExists),
    (RefusalKind::Denied, "DENIED", Code::PermissionDenied),
    (RefusalKind::Unauthenticated, "UNAUTHENTICATED", Code::Unauthenticated),
    (RefusalKind::Exhausted, "EXHAUSTED", Code::ResourceExhausted),
    (RefusalKind::Unavailable, "UNAVAILABLE", Code::Unavailable),
    (RefusalKind::Internal, "INTERNAL", Code::Internal),
];

// A status travels in HTTP/2 headers, of which clients take 16 KiB. Its message is there twice,
// once percent-encoded (3 bytes for one) and once in base64.
const MESSAGE_BYTES_MAX: usize = 2_000;
const HINT_BYTES_MAX: usize = 1_000;
const FIELD_BYTES_MAX: usize = 200;

pub fn to_status(refusal: &Refusal) -> Status {
    let row = KINDS.iter().find(|(kind, ..)| *kind == refusal.kind);
    let (_, reason, code) = row.expect("KINDS has a row for every kind; a test goes through them");
    let metadata = HashMap::from([
        ("field".to_owned(), clip(&refusal.field, FIELD_BYTES_MAX).to_owned()),
        ("hint".to_owned(), clip(&refusal.hint, HINT_BYTES_MAX).to_owned()),
    ]);
    let details = ErrorDetails::with_error_info(*reason, DOMAIN, metadata);
    Status::with_error_details(*code, clip(&refusal.message, MESSAGE_BYTES_MAX), details)
}

pub fn from_status(status: &Status) -> Refusal {
    if let Some(info) = status.get_details_error_info()
        && info.domain == DOMAIN
    {
        // A newer scheduler may have a reason that is unknown here; the code still says enough.
        let kind = match KINDS.iter().find(|(_, reason, _)| *reason == info.reason) {
            Some((kind, ..)) => *kind,
            None => kind_of(status),
        };
        let get = |key: &str| info.metadata.get(key).cloned().unwrap_or_default();
        return Refusal::new(kind, get("field"), status.message(), get("hint"));
    }
    let kind = kind_of(status);
    Refusal::new(kind, "", message_of(status, kind), hint_of(status.code(), kind))
}

fn kind_of(status: &Status) -> RefusalKind {
    // Only a status made on this side has a source: the connection failed, not the call.
    let made_here = std::error::Error::source(status).is_some();
    match status.code() {
        Code::Unknown | Code::Internal if made_here => RefusalKind::Unavailable,
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted => {
            RefusalKind::Unavailable
        }
        Code::OutOfRange => RefusalKind::Invalid,
        Code::Ok | Code::Unknown | Code::DataLoss | Code::Unimplemented => RefusalKind::Internal,
        code => KINDS
            .iter()
            .find(|(.., c)| *c == code)
            .map_or(RefusalKind::Internal, |(kind, ..)| *kind),
    }
}

/// The message with its causes, since the transport's own text is "transport error" and no more.
fn message_of(status: &Status, kind: RefusalKind) -> String {
    let mut parts = vec![status.message().to_owned()];
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        parts.push(error.to_string());
        cause = error.source();
    }
    parts.retain(|p| !p.is_empty());
    // Most wrappers repeat the text of what they wrap.
    let mut text: Vec<String> = Vec::new();
    for part in parts {
        if !text.iter().any(|known| known.contains(&part)) {
            text.push(part);
        }
    }
    let text = text.join(": ");
    match kind {
        RefusalKind::Unavailable if status.code() == Code::DeadlineExceeded => {
            format!("the scheduler did not answer in time: {text}")
        }
        RefusalKind::Unavailable => format!("the scheduler cannot be reached: {text}"),
        _ if text.is_empty() => format!("the call failed: {}", status.code().description()),
        _ => text,
    }
}

fn hint_of(code: Code, kind: RefusalKind) -> &'static str {
    match (code, kind) {
        (_, RefusalKind::Unavailable) => {
            "check that the scheduler runs and that `server` in your client settings is its \
             address; `tessera dev` starts one on this machine"
        }
        (Code::Unimplemented, _) => {
            "client and scheduler are of different versions: use those of one release"
        }
        (_, RefusalKind::Unauthenticated) => "check `token` in your client settings",
        (_, RefusalKind::Denied) => "ask an administrator for the role that this needs",
        (_, RefusalKind::Exhausted) => "wait a little and try again",
        (_, RefusalKind::Internal) => "see the scheduler's log for what happened",
        _ => "check what was asked for",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_round_trip() {
        for (kind, reason, code) in KINDS {
            let refusal =
                Refusal::new(kind, "gpus_per_node", "asks for 9 GPUs, größer", "ask for 8");
            let status = to_status(&refusal);
            assert_eq!(status.code(), code, "{reason}");
            let info = status.get_details_error_info().unwrap();
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason, "tessera"));
            assert_eq!(from_status(&status), refusal, "{reason}");
            // And once more through the headers it travels in.
            let mut headers = http::HeaderMap::new();
            status.add_header(&mut headers).unwrap();
            let arrived = Status::from_header_map(&headers).unwrap();
            assert_eq!(from_status(&arrived), refusal, "{reason}");
        }
    }

    #[test]
    fn a_long_refusal_fits_into_the_headers() {
        let long = "ü".repeat(50_000);
        let status = to_status(&Refusal::invalid("argv", &long, &long));
        let mut headers = http::HeaderMap::new();
        status.add_header(&mut headers).unwrap();
        let bytes: usize = headers.iter().map(|(k, v)| k.as_str().len() + v.len() + 32).sum();
        assert!(bytes < 16 << 10, "{bytes}");
        assert_eq!(from_status(&status).message.chars().count(), 1_000);
    }

    #[test]
    fn statuses_of_other_origin_say_what_to_check() {
        let broken = Status::from_error("connection reset by peer".into());
        let cases = [
            (broken, RefusalKind::Unavailable, "connection reset", "tessera dev"),
            (Status::unavailable("tcp connect error"), RefusalKind::Unavailable, "tcp", "server"),
            (Status::deadline_exceeded("5s"), RefusalKind::Unavailable, "in time", "server"),
            (Status::unknown("panic"), RefusalKind::Internal, "panic", "log"),
            (Status::unimplemented(""), RefusalKind::Internal, "the call failed", "versions"),
            (Status::unauthenticated("no"), RefusalKind::Unauthenticated, "no", "token"),
            (Status::out_of_range("too large"), RefusalKind::Invalid, "too large", "check"),
        ];
        for (status, kind, message, hint) in cases {
            let refusal = from_status(&status);
            assert_eq!(refusal.kind, kind, "{status:?}");
            assert!(refusal.message.contains(message), "{refusal:?}");
            assert!(refusal.hint.contains(hint), "{refusal:?}");
        }
    }

    #[test]
    fn details_that_are_garbage_are_passed_over() {
        let details = vec![0xff; 64].into();
        let status = Status::with_details(Code::NotFound, "no such job", details);
        let refusal = from_status(&status);
        assert_eq!(
            (refusal.kind, refusal.message.as_str()),
            (RefusalKind::NotFound, "no such job")
        );
    }
}
