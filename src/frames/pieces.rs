//! Finds the ends of frames in received bytes.

use std::io;

use bytes::{Buf, BytesMut};

use crate::wire::Head;

/// A frame, or the next part of one.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its bytes. Those of a frame, or of its beginning, start with the head.
    pub bytes: BytesMut,
    /// How many of them are head.
    pub head_bytes: usize,
    /// What is still to come of the frame.
    pub left: usize,
}

impl Piece {
    /// The part of it that is body.
    pub fn body(&self) -> &[u8] {
        self.bytes.get(self.head_bytes..).unwrap_or_default()
    }

    /// The same, without the head.
    pub fn into_body(mut self) -> BytesMut {
        self.bytes.advance(self.head_bytes.min(self.bytes.len()));
        self.bytes
    }
}

/// Cuts what one peer sends at the ends of its frames.
#[derive(Debug, Default)]
pub struct Pieces {
    left: usize,
}

impl Pieces {
    /// What is still to come of a frame whose beginning has been taken.
    pub fn left(&self) -> usize {
        self.left
    }

    /// The next piece off the front of `unread`. A frame of up to `whole_max` bytes is waited for and is one piece; of
    /// a longer one, what is there is taken as soon as its head is. `None` means that more bytes are needed.
    ///
    /// # Errors
    /// `InvalidData` for what is no frame.
    pub fn take(&mut self, unread: &mut BytesMut, whole_max: usize) -> io::Result<Option<Piece>> {
        let mut head_bytes = 0;
        if self.left == 0 {
            let head =
                Head::read(unread).map_err(|fault| io::Error::new(io::ErrorKind::InvalidData, fault))?;
            let Some(head) = head else { return Ok(None) };
            if unread.len() < head.frame_bytes() && head.frame_bytes() <= whole_max {
                return Ok(None);
            }
            (head_bytes, self.left) = (head.head_bytes, head.body_bytes);
        } else if unread.is_empty() {
            return Ok(None);
        }
        let bytes = head_bytes.saturating_add(self.left);
        // Taking the whole buffer costs less than splitting it.
        let bytes = if bytes < unread.len() { unread.split_to(bytes) } else { std::mem::take(unread) };
        let body = bytes.len().saturating_sub(head_bytes);
        self.left = self.left.saturating_sub(body);
        Ok(Some(Piece { bytes, head_bytes, left: self.left }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::reply;

    fn frame(body: &str) -> Vec<u8> {
        reply::frame(body.as_bytes())
    }

    /// Every split of two frames: what comes out is what went in, whole where it is short and never past its end.
    #[test]
    fn frames_end_where_their_heads_say_however_they_come() {
        let (short, long) = (frame("{}"), frame(&"x".repeat(40)));
        let all = [&long[..], &short, &long].concat();
        for whole_max in [short.len(), long.len()] {
            for cut in 0..=all.len() {
                let (mut pieces, mut unread) = (Pieces::default(), BytesMut::new());
                let mut frames = vec![Vec::new()];
                for part in [&all[..cut], &all[cut..]] {
                    unread.extend_from_slice(part);
                    while let Some(piece) = pieces.take(&mut unread, whole_max).unwrap() {
                        assert_eq!(pieces.left(), piece.left);
                        assert_eq!(piece.head_bytes > 0, frames.last().unwrap().is_empty(), "cut at {cut}");
                        let is_whole = piece.head_bytes > 0 && piece.left == 0;
                        let length = piece.bytes.len() + piece.left;
                        assert!(is_whole || piece.head_bytes == 0 || length > whole_max, "cut at {cut}");
                        frames.last_mut().unwrap().extend_from_slice(&piece.bytes);
                        if piece.left == 0 {
                            frames.push(Vec::new());
                        }
                    }
                }
                assert_eq!(frames, [&long[..], &short, &long, &[]], "cut at {cut}");
            }
        }
    }

    #[test]
    fn what_is_no_frame_is_told() {
        let mut unread = BytesMut::from("GET / HTTP/1.1\r\n");
        let fault = Pieces::default().take(&mut unread, 100).unwrap_err();
        assert_eq!(fault.kind(), io::ErrorKind::InvalidData);
    }
}
