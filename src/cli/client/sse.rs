//! Server-sent events, read piece by piece as they come off the network.

use std::collections::VecDeque;
use std::time::Duration;

use reqwest::Response;
use tokio::time::timeout;

use super::error::ClientResult;
use super::{Client, ClientError};

/// The server says something every 15 seconds, if only that it is alive.
const SILENCE: Duration = Duration::from_secs(45);

/// One event: its number, if the stream gives one, and its text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SseEvent {
    pub id: Option<String>,
    pub data: String,
}

/// Takes bytes cut anywhere, gives whole events. WHATWG HTML, section 9.2.6.
#[derive(Debug, Default)]
pub struct SseParser {
    /// The line that is not complete yet.
    line: Vec<u8>,
    event: SseEvent,
    has_data: bool,
}

impl SseParser {
    /// The events that these bytes complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<SseEvent> {
        let mut events = Vec::new();
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line = line.strip_suffix(b"\r").unwrap_or(&line);
            events.extend(self.line(&String::from_utf8_lossy(line)));
        }
        events
    }

    fn line(&mut self, line: &str) -> Option<SseEvent> {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            return std::mem::take(&mut self.has_data).then_some(event);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
                self.has_data = true;
            }
            "id" => self.event.id = Some(value.to_owned()),
            // A line that begins with a colon keeps the connection alive.
            _ => {}
        }
        None
    }
}

/// The events of a response.
pub struct SseStream {
    client: Client,
    response: Response,
    parser: SseParser,
    ready: VecDeque<SseEvent>,
}

impl SseStream {
    pub fn new(client: &Client, response: Response) -> Self {
        Self {
            client: client.clone(),
            response,
            parser: SseParser::default(),
            ready: VecDeque::new(),
        }
    }

    /// The next event; `None` where the stream ends.
    ///
    /// # Errors
    /// [`super::ClientError::Broken`].
    pub async fn next(&mut self) -> ClientResult<Option<SseEvent>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            let chunk = timeout(SILENCE, self.response.chunk()).await;
            let chunk = chunk.map_err(|_| ClientError::Broken {
                url: self.client.address(),
                reason: "the server fell silent".to_owned(),
            })?;
            let chunk = chunk.map_err(|error| self.client.broken(&error))?;
            let Some(chunk) = chunk else { return Ok(None) };
            self.ready.extend(self.parser.push(&chunk));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str =
        ": alive\r\n\r\nid: 7\ndata: {\"a\":\ndata: \"é\"}\n\nretry: 5\n\ndata:x\n\ncut";

    #[test]
    fn events_are_whole_however_the_bytes_are_cut() {
        let first = SseEvent { id: Some("7".into()), data: "{\"a\":\n\"é\"}".into() };
        let second = SseEvent { id: None, data: "x".into() };
        for size in 1..STREAM.len() {
            let mut parser = SseParser::default();
            let events: Vec<_> =
                STREAM.as_bytes().chunks(size).flat_map(|bytes| parser.push(bytes)).collect();
            assert_eq!(events, [first.clone(), second.clone()], "cut into {size} bytes");
        }
    }
}
