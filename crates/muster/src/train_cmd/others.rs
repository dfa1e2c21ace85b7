//! Telling the ranks of all hosts how one of this host ended: on node 0 their server is in this
//! process; the others tell it, on a thread beside the watch, which must not wait for a network.

use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use comm::rendezvous::{Link, Server};

use super::address::Absence;

/// How long this process stays until node 0 has heard.
const HEARD: Duration = Duration::from_secs(2);

/// The other hosts of a job, as a supervisor reaches them.
pub struct Others<'a> {
    /// On node 0.
    server: Option<&'a Server>,
    /// On other nodes, where the ranks are started again together.
    link: Option<&'a Link>,
    host: &'a Absence,
    /// Where the ranks meet.
    meeting: &'a [SocketAddr],
    telling: Vec<JoinHandle<()>>,
}

impl<'a> Others<'a> {
    pub fn new(server: Option<&'a Server>, host: &'a Absence, meeting: &'a [SocketAddr]) -> Self {
        Others { server, link: None, host, meeting, telling: Vec::new() }
    }

    /// With the connection to node 0's supervisor, if there is one.
    pub fn linked(self, link: Option<&'a Link>) -> Others<'a> {
        Others { link, ..self }
    }

    /// Why this host was taken for gone, if it was: the job goes on, or waits, without its ranks.
    pub fn overtaken(&self) -> Option<String> {
        self.link.and_then(Link::overtaken)
    }

    /// The server, on node 0.
    pub fn server(&self) -> Option<&'a Server> {
        self.server
    }

    /// Tells how `rank` ended, which has met the others as `group`, if it has.
    pub fn tell_end(&mut self, group: Option<&str>, rank: usize, how: &str) {
        match (self.server, group) {
            (Some(server), _) => server.report_exit(rank, how),
            (None, Some(group)) => {
                let (host, at) = (self.host.clone(), self.meeting.to_vec());
                let (group, how) = (group.to_owned(), how.to_owned());
                let tell = move || host.report_end(&at, (&group, rank), &how);
                let thread = std::thread::Builder::new().name("telling".into()).spawn(tell);
                // Without a thread node 0 learns of the end by the connection of the rank.
                self.telling.extend(thread.ok());
            }
            // Node 0 waits for it, and sees that its connection ends.
            (None, None) => {}
        }
    }

    /// Waits until that has been heard, within reason.
    pub fn wait_until_heard(&mut self) {
        let until = Instant::now() + HEARD;
        let is_on = |told: &JoinHandle<()>| !told.is_finished();
        while self.telling.iter().any(is_on) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.telling.retain(is_on);
    }
}
