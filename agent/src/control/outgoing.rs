//! The stream of reports: heartbeats overtake everything else.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::mpsc;
use tokio_stream::Stream;

use tessera_proto::v1;

use crate::session::BootMillis;

pub struct Outgoing {
    urgent: mpsc::Receiver<v1::Report>,
    rest: mpsc::Receiver<v1::Report>,
    hello_sent: bool,
}

impl Outgoing {
    pub fn new(urgent: mpsc::Receiver<v1::Report>, rest: mpsc::Receiver<v1::Report>) -> Self {
        Self { urgent, rest, hello_sent: false }
    }
}

impl Stream for Outgoing {
    type Item = v1::Report;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<v1::Report>> {
        if self.hello_sent
            && let Poll::Ready(Some(report)) = self.urgent.poll_recv(context)
        {
            return Poll::Ready(Some(report));
        }
        let report = self.rest.poll_recv(context);
        self.hello_sent |= matches!(report, Poll::Ready(Some(_)));
        report
    }
}

/// A grant is counted from the moment that stands in here, so it is taken as late as possible but
/// never after the sending.
pub fn heartbeat_now() -> v1::Report {
    let heartbeat = v1::Heartbeat {
        sent_boottime_ms: BootMillis::now().0,
        unix_ms: i64::try_from(tessera_shim::proc::unix_ms()).unwrap_or(i64::MAX),
    };
    v1::Report { report: Some(v1::report::Report::Heartbeat(heartbeat)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::StreamExt;

    #[tokio::test]
    async fn hello_is_first_and_then_heartbeats_overtake() {
        let (urgent, beats) = mpsc::channel(1);
        let (rest, reports) = mpsc::channel(8);
        let mut stream = Outgoing::new(beats, reports);
        let word = |report: v1::Report| match report.report {
            Some(v1::report::Report::Hello(_)) => "hello",
            Some(v1::report::Report::Heartbeat(_)) => "beat",
            Some(v1::report::Report::Started(_)) => "started",
            _ => "other",
        };
        let report = |report| v1::Report { report: Some(report) };
        urgent.try_send(heartbeat_now()).unwrap();
        rest.try_send(report(v1::report::Report::Hello(v1::Hello::default()))).unwrap();
        for _ in 0..3 {
            rest.try_send(report(v1::report::Report::Started(v1::Started::default()))).unwrap();
        }
        let mut got = Vec::new();
        for _ in 0..3 {
            got.push(word(stream.next().await.unwrap()));
        }
        urgent.try_send(heartbeat_now()).unwrap();
        for _ in 0..3 {
            got.push(word(stream.next().await.unwrap()));
        }
        assert_eq!(got, ["hello", "beat", "started", "beat", "started", "started"]);
        drop((urgent, rest));
        assert!(stream.next().await.is_none());
    }
}
