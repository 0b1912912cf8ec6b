//! Who makes a call that one server of a fleet passes on to another.

use std::net::SocketAddr;

use http::header::{HeaderMap, HeaderValue};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode, percent_encode};
use store::fleet::Leader;
use subtle::ConstantTimeEq as _;

use super::routing::Fleet;
use crate::headers::{FLEET_INDEXER, FLEET_PEER, FLEET_SECRET, FLEET_TERM};

/// The caller of a call that another server has passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// Whether the call is meant for the term that this server leads.
    pub(crate) is_current: bool,
    /// The address of the caller. The port is 0 where it does not matter.
    pub(crate) peer: Option<SocketAddr>,
    /// The name of the indexer whose key the caller has shown.
    pub(crate) indexer: Option<Box<str>>,
}

impl Fleet {
    /// Takes the headers of the fleet out of a request, and returns its origin if another server of the
    /// fleet sent it.
    pub(crate) fn take_origin(&self, headers: &mut HeaderMap) -> Option<Origin> {
        let secret = headers.remove(FLEET_SECRET)?;
        let [term, peer, indexer] =
            [FLEET_TERM, FLEET_PEER, FLEET_INDEXER].map(|name| headers.remove(name));
        if !bool::from(secret.as_bytes().ct_eq(self.secret.as_bytes())) {
            return None;
        }
        let leader = self.leader.borrow();
        let is_for = |leader: &Leader| leader.is_self && term == Some(term_of(leader));
        let is_current = self.leads() && leader.as_ref().is_some_and(is_for);
        let text = |value: &HeaderValue| value.to_str().ok().map(str::to_owned);
        let indexer = indexer.as_ref().and_then(|name| {
            let name = percent_decode(name.as_bytes()).decode_utf8().ok()?;
            Some(name.into())
        });
        let peer = peer.as_ref().and_then(text).and_then(|peer| peer.parse().ok());
        Some(Origin { is_current, peer, indexer })
    }

    /// Adds the headers of the fleet to a request for `leader`.
    pub(crate) fn add_origin(
        &self,
        headers: &mut HeaderMap,
        leader: &Leader,
        peer: Option<SocketAddr>,
        indexer: Option<&str>,
    ) {
        headers.insert(FLEET_SECRET, self.secret.clone());
        headers.insert(FLEET_TERM, term_of(leader));
        let peer = peer.map_or_else(|| HeaderValue::from_static(""), |peer| text(peer.to_string()));
        headers.insert(FLEET_PEER, peer);
        if let Some(indexer) = indexer {
            let indexer = percent_encode(indexer.as_bytes(), NON_ALPHANUMERIC);
            headers.insert(FLEET_INDEXER, text(indexer.to_string()));
        }
    }
}

fn term_of(leader: &Leader) -> HeaderValue {
    text(format!("{}-{}", leader.epoch, leader.id))
}

fn text(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("it has only digits, letters and punctuation of ASCII")
}
