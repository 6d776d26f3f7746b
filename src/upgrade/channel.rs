//! The protocol between a process and the next one, over the socket pair that both hold.
//!
//! First the old one says what it passes, the new one "here" with its id and then "ready", the old one "go", the new
//! one "serving": see `process/successor` and [`old_processes`](super::old_processes). From then on the old one answers
//! questions (metrics, status, a backend's state): a question is a line, an answer a line and a body. An answer carries
//! its question's tag: one that came too late, or was read in part, is skipped by the next question. When an end is
//! closed, its process is gone.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;

use bytes::{Buf as _, BytesMut};
use serde::{Deserialize, Serialize};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::systemd::Purpose;

/// In the environment of the next process. A first stage only starts the second and ends, so that the second becomes a
/// child of the service manager and not of the old process.
pub const STAGE: &str = "SESSILE_HANDOVER";
/// The stage that starts the second.
pub const DETACH: &str = "detach";
/// The stage that serves.
pub const FOLLOW: &str = "follow";

/// A greeting names every socket and every state that an operator has set.
const GREETING_BYTES_MAX: usize = 1 << 20;
/// Any other line.
const LINE_BYTES_MAX: usize = 4 << 10;
/// An answer; a thousand backends have metrics of a few megabytes.
const BODY_BYTES_MAX: usize = 64 << 20;

/// The old process's first message.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Greeting {
    /// The listening sockets, in the order of the descriptors that follow that of the channel.
    pub sockets: Vec<Named>,
    /// The ids of older processes, whose channels follow the sockets.
    pub processes: Vec<u32>,
    /// States that operators set: backend, state, and the state in the file at that time.
    pub states: Vec<(String, String, String)>,
    /// Servers that may have sessions.
    #[serde(default)]
    pub seen: Vec<Seen>,
}

/// A server that may have sessions, as one process describes it to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The name of its backend.
    pub name: String,
    /// As configured.
    pub address: String,
    /// The server itself.
    pub at: SocketAddr,
    /// The name in the file for which it was found.
    pub source: Option<String>,
    /// Whether it speaks TLS.
    pub tls: bool,
}

/// A listening socket.
#[derive(Debug, Serialize, Deserialize)]
pub enum Named {
    /// Bound by a sessile, for this address of the configuration.
    Own {
        /// For clients, operators or Prometheus.
        purpose: Purpose,
        /// As in the file.
        address: String,
    },
    /// Passed by systemd, under this name.
    Systemd {
        /// The name of its unit.
        name: String,
    },
}

/// An end of the socket pair.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    unread: BytesMut,
    asked: u64,
    /// The head of an answer whose body is not complete: its tag and its length.
    coming: Option<(String, usize)>,
}

impl Channel {
    /// This process's end.
    pub fn new(stream: StdUnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream: UnixStream::from_std(stream)?, unread: BytesMut::new(), asked: 0, coming: None })
    }

    /// A copy of this end for the next process.
    pub fn copy(&self) -> io::Result<OwnedFd> {
        self.stream.as_fd().try_clone_to_owned()
    }

    /// Whether the other side has ended. Nothing is read, and nothing waited for.
    pub fn has_ended(&self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        match SockRef::from(&self.stream).peek(&mut byte) {
            Ok(count) => count == 0,
            Err(error) => is_end(&error),
        }
    }

    /// Sends one line.
    pub async fn say(&mut self, line: &str) -> io::Result<()> {
        self.stream.write_all(format!("{line}\n").as_bytes()).await
    }

    /// The next line. Cancel-safe.
    pub async fn read_line(&mut self) -> io::Result<String> {
        self.line(LINE_BYTES_MAX).await
    }

    /// Waits for `word`, and returns what follows it.
    pub async fn expect(&mut self, word: &str) -> io::Result<String> {
        let line = self.read_line().await?;
        let rest = line.strip_prefix(word);
        rest.map(|rest| rest.trim().to_owned()).ok_or_else(|| odd("another word was expected"))
    }

    /// Sends what is passed.
    pub async fn greet(&mut self, greeting: &Greeting) -> io::Result<()> {
        self.say(&serde_json::to_string(greeting)?).await
    }

    /// Receives what is passed.
    pub async fn greeted(&mut self) -> io::Result<Greeting> {
        Ok(serde_json::from_str(&self.line(GREETING_BYTES_MAX).await?)?)
    }

    /// Asks, and waits for the answer. Cancel-safe: the channel can take the next question.
    pub async fn ask(&mut self, what: &str) -> io::Result<Vec<u8>> {
        self.asked = self.asked.wrapping_add(1);
        let tag = format!("{}.{}", std::process::id(), self.asked);
        self.say(&format!("{tag} {what}")).await?;
        loop {
            let (answered, body) = self.heard().await?;
            if answered == tag {
                return Ok(body);
            }
        }
    }

    /// The next answer: its question's tag and its body. Cancel-safe.
    async fn heard(&mut self) -> io::Result<(String, Vec<u8>)> {
        let (tag, bytes) = match self.coming.take() {
            Some(head) => head,
            None => {
                let head = self.read_line().await?;
                let (tag, bytes) = head.split_once(' ').ok_or_else(|| odd("an answer without a head"))?;
                let bytes: usize = bytes.parse().map_err(|_| odd("an answer without a length"))?;
                if bytes > BODY_BYTES_MAX {
                    return Err(odd("an answer without end"));
                }
                (tag.to_owned(), bytes)
            }
        };
        while self.unread.len() < bytes {
            self.coming = Some((tag.clone(), bytes));
            self.fill().await?;
        }
        self.coming = None;
        Ok((tag, self.unread.split_to(bytes).to_vec()))
    }

    /// The next question: its tag and its text.
    pub async fn question(&mut self) -> io::Result<(String, String)> {
        let line = self.read_line().await?;
        let (tag, what) = line.split_once(' ').ok_or_else(|| odd("a question without words"))?;
        Ok((tag.to_owned(), what.to_owned()))
    }

    /// Answers a question.
    pub async fn answer(&mut self, tag: &str, body: &[u8]) -> io::Result<()> {
        self.say(&format!("{tag} {}", body.len())).await?;
        self.stream.write_all(body).await
    }

    async fn line(&mut self, bytes_max: usize) -> io::Result<String> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.unread) {
                let line = self.unread.split_to(end);
                self.unread.advance(1);
                return String::from_utf8(line.to_vec()).map_err(io::Error::other);
            }
            if self.unread.len() > bytes_max {
                return Err(odd("a line without end"));
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.unread).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// Whether the error means that the process at the other end has ended.
pub fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

fn odd(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Channel, Channel) {
        let (a, b) = StdUnixStream::pair().unwrap();
        (Channel::new(a).unwrap(), Channel::new(b).unwrap())
    }

    #[tokio::test]
    async fn an_answer_that_comes_too_late_is_passed_over() {
        let (mut new, mut old) = pair();
        let (first, words) = tokio::select! {
            answer = new.ask("first") => panic!("nobody has answered, but {answer:?} came"),
            question = old.question() => question.unwrap(),
        };
        assert_eq!(words, "first");
        old.answer(&first, b"late").await.unwrap();
        let asking = async { new.ask("second").await.unwrap() };
        let answering = async {
            let (tag, words) = old.question().await.unwrap();
            assert_eq!(words, "second");
            old.answer(&tag, b"in\ntime").await.unwrap();
        };
        assert_eq!(tokio::join!(asking, answering).0, b"in\ntime");
    }

    #[tokio::test]
    async fn an_answer_of_which_half_came_in_time_is_passed_over_too() {
        let (mut new, mut old) = pair();
        new.unread.extend_from_slice(b"0.1 8\nhalf");
        assert!(futures_util::poll!(std::pin::pin!(new.heard())).is_pending());
        new.unread.extend_from_slice(b"more");
        let answering = async {
            let (tag, _) = old.question().await.unwrap();
            old.answer(&tag, b"whole").await.unwrap();
        };
        assert_eq!(tokio::join!(new.ask("second"), answering).0.unwrap(), b"whole");
    }

    #[tokio::test]
    async fn what_does_not_end_is_refused_and_who_is_gone_is_noticed() {
        let (mut new, mut old) = pair();
        let talking = async { old.stream.write_all(&[b'x'; 3 * LINE_BYTES_MAX]).await };
        let (heard, talked) = tokio::join!(new.read_line(), talking);
        talked.unwrap();
        assert_eq!(heard.unwrap_err().kind(), io::ErrorKind::InvalidData);
        let (mut new, old) = pair();
        assert!(!new.has_ended());
        drop(old);
        assert!(new.has_ended());
        assert_eq!(new.read_line().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
