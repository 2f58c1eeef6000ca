//! Ranks that are threads of one process. Several may share a device.

use super::{
    frame::Frame,
    patience::Pulse,
    staged::Staged,
    wire::{Event, Link, Wire},
};
use std::{
    collections::VecDeque,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

/// Links between `ranks` threads of this process: one for each to take along. A rank whose end is dropped counts as gone.
pub fn local(ranks: usize, timeout: Duration) -> Vec<Staged> {
    let ends: Vec<_> = (0..ranks).map(|_| mpsc::channel::<(usize, Event)>()).collect();
    let inboxes: Vec<_> = ends.iter().map(|(inbox, _)| inbox.clone()).collect();
    ends.into_iter()
        .enumerate()
        .map(|(rank, (own, events))| {
            drop(own);
            let link = |peer: usize| {
                (peer != rank).then(|| {
                    let (out, outgoing) = mpsc::channel::<Option<Frame>>();
                    let inbox = inboxes[peer].clone();
                    // Says that the rank is gone when its end is dropped, behind everything that it sent.
                    let forward = thread::spawn(move || {
                        for frame in outgoing.into_iter().map_while(|frame| frame) {
                            let _ = inbox.send((rank, Event::Frame(frame)));
                        }
                        let _ = inbox.send((rank, Event::Closed));
                    });
                    let ahead = out.clone();
                    Link {
                        out,
                        tell: Box::new(move |kind| drop(ahead.send(Some(Frame::empty(kind))))),
                        posted: None,
                        moved: Arc::default(),
                        inbox: VecDeque::new(),
                        cut: Box::new(|| ()),
                        writer: Some(forward),
                        readers: Vec::new(),
                    }
                })
            };
            let pulse = Arc::new(Pulse::new(ranks));
            Staged::new(Wire::new(rank, timeout, (0..ranks).map(link).collect(), events, pulse))
        })
        .collect()
}
