//! `--metrics HOST:PORT`: the mount's figures for Prometheus, in the OpenMetrics text format, on a loopback address.
//!
//! Who asks is answered by one thread, and has little time and room; so nobody who asks, and no number of them, takes
//! anything from the threads that serve the mount. The thread waits for whoever sends something next and for nobody in
//! particular, and where there are too many, those who have taken longest to ask are given up. So nobody keeps it from
//! answering others. The socket is bound before the process gives up its rights, and the thread is started after.
//!
//! Only loopback, since there is no password: what is told is numbers, no names of images and no paths, to every user
//! of this machine.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::{Failure, words};
use crate::mount::{Counters, Figures};

/// The only thing there is to ask for.
const PATH: &str = "/metrics";
/// The longest head of a request, in bytes.
const HEAD_MAX: usize = 8 << 10;
/// The most header lines of a request.
const HEADERS_MAX: usize = 64;
/// How long a request may take from its connection to the last byte of its head.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many may be asking at a time, each of whom takes a descriptor.
const ASKING_MAX: usize = 16;
/// How long to wait where no connection can be taken, for want of descriptors for example.
const RESPITE: Duration = Duration::from_millis(200);
/// What is said first in every name.
const PREFIX: &str = "docker_fs";

/// The addresses that were typed.
///
/// # Errors
/// What is wrong with them, in words for the user.
pub(super) fn addresses(typed: &str) -> Result<Vec<SocketAddr>, String> {
    let found = typed.to_socket_addrs().map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => format!("--metrics wants HOST:PORT, not {typed:?}"),
        _ => format!("--metrics {typed}: {}", words(&error)),
    })?;
    let found: Vec<SocketAddr> = found.collect();
    match found.iter().find(|address| !address.ip().is_loopback()) {
        Some(other) => Err(format!(
            "--metrics {typed}: {} is not a loopback address; there is no password, so only this machine may ask",
            other.ip()
        )),
        None => Ok(found),
    }
}

/// A socket that others may connect to, and that nobody answers yet.
#[derive(Debug)]
pub(super) struct Endpoint(TcpListener);

/// Binds the first of these addresses that can be.
///
/// # Errors
/// Why none can.
pub(super) fn bind(addresses: &[SocketAddr]) -> Result<Endpoint, Failure> {
    let shown = || addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let failed = |error: io::Error| Failure::failed(format!("cannot serve metrics on {}: {}", shown(), words(&error)));
    let listener = TcpListener::bind(addresses).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    log::info!("metrics on http://{address}{PATH}");
    Ok(Endpoint(listener))
}

impl Endpoint {
    /// Answers from now on, in a thread of its own that ends with the process.
    ///
    /// # Errors
    /// The system's, where there can be no thread.
    pub(super) fn serve(self, counters: Counters) -> io::Result<()> {
        thread::Builder::new().name("metrics".to_owned()).spawn(move || self.run(&counters)).map(drop)
    }

    fn run(&self, counters: &Counters) {
        let mut asking = VecDeque::new();
        loop {
            if let Err(error) = self.turn(&mut asking, || text(counters)) {
                log::debug!("metrics: {}", words(&error));
                thread::sleep(RESPITE);
            }
        }
    }

    /// Waits until there is something to do, and does it for everyone.
    fn turn(&self, asking: &mut VecDeque<Asking>, metrics: impl Fn() -> Option<String>) -> io::Result<()> {
        wait(&self.0, asking)?;
        asking.retain_mut(|one| one.goes_on(&metrics));
        // At most as many in a turn as there is room for, so that each of them is looked at.
        for _ in 0..ASKING_MAX {
            let stream = match self.0.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            let mut one = Asking::new(stream)?;
            if one.goes_on(&metrics) {
                asking.push_back(one);
            }
            if asking.len() > ASKING_MAX {
                asking.pop_front();
            }
        }
        Ok(())
    }
}

/// Waits until someone connects, sends something, or has taken too long.
fn wait(listener: &TcpListener, asking: &VecDeque<Asking>) -> io::Result<()> {
    let left = asking.front().map(|oldest| PATIENCE.saturating_sub(oldest.since.elapsed()));
    let left = left.and_then(|left| Timespec::try_from(left).ok());
    let streams = asking.iter().map(|one| PollFd::new(&one.stream, PollFlags::IN));
    let mut all: Vec<PollFd<'_>> = streams.chain([PollFd::new(listener, PollFlags::IN)]).collect();
    match poll(&mut all, left.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Who has connected, and has not asked for anything yet.
#[derive(Debug)]
struct Asking {
    stream: TcpStream,
    head: Vec<u8>,
    since: Instant,
}

impl Asking {
    fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, head: Vec::new(), since: Instant::now() })
    }

    /// Reads what there is, and answers if that is a request; tells whether there is still something to wait for.
    fn goes_on(&mut self, metrics: impl Fn() -> Option<String>) -> bool {
        let done = match self.read() {
            Ok(Some(asked)) => answer(&self.stream, asked, metrics),
            Ok(None) if self.since.elapsed() < PATIENCE => return true,
            Ok(None) => Err(io::ErrorKind::TimedOut.into()),
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            log::debug!("metrics: {}", words(&error));
        }
        false
    }

    /// What is asked for; `None` where there is more to come.
    fn read(&mut self) -> io::Result<Option<Asked>> {
        let mut piece = [0; 1024];
        loop {
            let filled = match self.stream.read(&mut piece) {
                Ok(0) => return Ok(Some(Asked::Nothing)),
                Ok(filled) => filled,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            };
            self.head.extend_from_slice(piece.get(..filled).unwrap_or_default());
            if let Some(asked) = parse(&self.head) {
                return Ok(Some(asked));
            }
        }
    }
}

/// Answers a request; the connection is good for one.
fn answer(mut stream: &TcpStream, asked: Asked, metrics: impl FnOnce() -> Option<String>) -> io::Result<()> {
    let plain = |status, text: String| (status, "text/plain; charset=utf-8", text);
    let (status, kind, body) = match asked {
        Asked::Metrics | Asked::TheirHead => match metrics() {
            Some(text) => ("200 OK", "application/openmetrics-text; version=1.0.0; charset=utf-8", text),
            None => plain("500 Internal Server Error", "the figures cannot be written\n".to_owned()),
        },
        Asked::Nothing => return Ok(()),
        Asked::AnotherPath => plain("404 Not Found", format!("the figures are at {PATH}\n")),
        Asked::AnotherMethod => plain("405 Method Not Allowed", "only GET and HEAD are served\n".to_owned()),
        Asked::TooMuch => plain("431 Request Header Fields Too Large", "the request is too long\n".to_owned()),
        Asked::NoHttp => plain("400 Bad Request", "this is no request of HTTP/1\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let sent = if asked == Asked::TheirHead { String::new() } else { body };
    // The whole answer fits into the socket's own memory, so that this waits for nobody.
    stream.write_all(&[head.into_bytes(), sent.into_bytes()].concat())?;
    stream.shutdown(std::net::Shutdown::Write)
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Metrics,
    /// Their length and kind, as who looks whether anybody answers asks (RFC 9110, section 9.3.2).
    TheirHead,
    AnotherPath,
    AnotherMethod,
    /// More than a request may have.
    TooMuch,
    NoHttp,
    /// The connection ended before the request did.
    Nothing,
}

/// What the head of a request asks for; `None` where there must be more of it.
fn parse(head: &[u8]) -> Option<Asked> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let asked = match request.parse(head) {
        Err(httparse::Error::TooManyHeaders) => Asked::TooMuch,
        Err(_) => Asked::NoHttp,
        Ok(httparse::Status::Partial) if head.len() > HEAD_MAX => Asked::TooMuch,
        Ok(httparse::Status::Partial) => return None,
        Ok(httparse::Status::Complete(_)) => {
            let path = request.path.unwrap_or_default();
            match (request.method, path.split('?').next() == Some(PATH)) {
                (Some("GET"), true) => Asked::Metrics,
                (Some("HEAD"), true) => Asked::TheirHead,
                (Some("GET"), false) => Asked::AnotherPath,
                _ => Asked::AnotherMethod,
            }
        }
    };
    Some(asked)
}

/// The figures as OpenMetrics wants them.
fn text(counters: &Counters) -> Option<String> {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Snapshot(counters.figures())));
    let mut text = String::new();
    encode_registry(&mut text, &registry).and_then(|()| encode_eof(&mut text)).ok()?;
    Some(text)
}

/// The figures of one answer.
#[derive(Debug)]
struct Snapshot(Figures);

impl Collector for Snapshot {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> std::fmt::Result {
        let figures = &self.0;
        let requests = figures.requests.iter().map(|(name, count)| (*name, *count));
        family(&mut to, "requests", "Requests of the kernel", "operation", requests)?;
        let errors = figures.errors.iter().map(|(name, count)| (name.as_str(), *count));
        family(&mut to, "request_errors", "Requests that failed", "errno", errors)?;
        for (name, help, value) in [
            ("read_bytes", "Bytes of files that were answered", figures.read_bytes),
            ("listings_made", "Listings of directories that were made", figures.listings.made),
            ("listings_found", "Questions for a listing that was kept", figures.listings.found),
            ("listings_evicted", "Listings given up to make room", figures.listings.evicted),
            ("ahead_directories", "Directories listed ahead of a walk", figures.read_ahead.directories),
            ("ahead_directories_used", "Those that were asked for later", figures.read_ahead.directories_used),
            ("ahead_files", "Files put into the page cache ahead of a walk", figures.read_ahead.files),
            ("ahead_file_bytes", "Their bytes", figures.read_ahead.file_bytes),
            ("store_rescans", "How often the store was read again, changed or not", figures.store_rescans),
        ] {
            to.encode_descriptor(name, help, None, MetricType::Counter)?
                .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        for (name, help, value) in [
            ("listings", "Listings that are kept", figures.listings.kept),
            ("listing_entries", "Their entries", figures.listings.kept_entries),
            ("inodes", "Inodes that the kernel holds", figures.inodes.held),
            ("inode_bytes", "Bytes of memory that they take", figures.inodes.bytes),
            ("open_handles", "Files that the kernel opened", figures.open.handles),
            ("open_unopened", "Files held open for readers without a handle", figures.open.unopened),
            ("open_passthrough", "Files that the kernel reads by itself", figures.open.passthrough),
        ] {
            to.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
        }
        for (name, help, seconds) in [
            ("wait_looking_seconds", "Time waited to look for changes in the store", figures.waits.looking_seconds),
            ("wait_names_seconds", "Time waited for the kernel to forget names", figures.waits.names_seconds),
            ("wait_pages_seconds", "Time waited for the kernel to forget pages", figures.waits.pages_seconds),
        ] {
            let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
            to.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&seconds)?;
        }
        Ok(())
    }
}

/// A counter with a label.
fn family<'a>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &'static str,
    counts: impl Iterator<Item = (&'a str, u64)>,
) -> std::fmt::Result {
    let mut encoder = to.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (value, count) in counts {
        let labels = [(label, value)];
        encoder.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn only_loopback_addresses_are_taken() {
        let v4 = |port: u16| Ok(vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))]);
        assert_eq!(addresses("127.0.0.1:9090"), v4(9090));
        assert_eq!(addresses("127.0.0.1:0"), v4(0));
        assert_eq!(addresses("[::1]:9090"), Ok(vec![SocketAddr::from((Ipv6Addr::LOCALHOST, 9090))]));
        for (typed, words) in [
            ("0.0.0.0:9090", "--metrics 0.0.0.0:9090: 0.0.0.0 is not a loopback address"),
            ("[::]:9090", "--metrics [::]:9090: :: is not a loopback address"),
            ("192.0.2.1:9090", "--metrics 192.0.2.1:9090: 192.0.2.1 is not a loopback address"),
            ("9090", "--metrics wants HOST:PORT, not \"9090\""),
            ("127.0.0.1", "--metrics wants HOST:PORT, not \"127.0.0.1\""),
            ("127.0.0.1:99999", "--metrics wants HOST:PORT, not \"127.0.0.1:99999\""),
            ("", "--metrics wants HOST:PORT, not \"\""),
        ] {
            let said = addresses(typed).unwrap_err();
            assert!(said.starts_with(words), "{typed}: {said}");
        }
    }

    #[test]
    fn a_request_is_read_as_far_as_it_goes() {
        let long = format!("GET /metrics HTTP/1.1\r\nA: {}", "x".repeat(HEAD_MAX));
        let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(HEADERS_MAX + 1));
        for (head, asked) in [
            ("", None),
            ("GET /metr", None),
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n", None),
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", Some(Asked::Metrics)),
            ("GET /metrics HTTP/1.0\r\n\r\n", Some(Asked::Metrics)),
            ("GET /metrics?format=text HTTP/1.1\r\n\r\n", Some(Asked::Metrics)),
            ("GET /metrics/x HTTP/1.1\r\n\r\n", Some(Asked::AnotherPath)),
            ("GET / HTTP/1.1\r\n\r\n", Some(Asked::AnotherPath)),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", Some(Asked::TheirHead)),
            ("POST /metrics HTTP/1.1\r\n\r\n", Some(Asked::AnotherMethod)),
            ("\x16\x03\x01", Some(Asked::NoHttp)),
            ("GET /metrics\r\n\r\n", Some(Asked::NoHttp)),
            (long.as_str(), Some(Asked::TooMuch)),
            (many.as_str(), Some(Asked::TooMuch)),
        ] {
            assert_eq!(parse(head.as_bytes()), asked, "{head:.60?}");
        }
    }
}
