//! TLS between the hosts of a job: what is said there is read by nobody else, and not altered.
//!
//! Every process of a job shows a certificate, and takes one that the job's own authority has
//! signed; names in certificates mean nothing, since the authority signs for this job alone. The
//! handshake of the secret (`comm::handshake`) goes on inside of it, and tells starts of jobs,
//! ranks and purposes apart as it does without TLS.
//!
//! ```text
//! conn    while ranks meet, and for control and signals: asynchronous     tokio-rustls
//! stream  data: the same session over a socket that does not block        rustls, and poll
//! ```
//!
//! It is TLS 1.3 alone, without resumption, so that every connection proves itself anew. Whoever
//! has the authority's key can make processes of the job: keep it elsewhere. Nothing is looked up
//! in lists of revoked certificates; make another authority instead. What a vendor's library
//! (NCCL, RCCL) sends between hosts goes over sockets of its own, past all of this.
//!
//! A stranger who connects costs a handshake of TLS instead of a hash, as far as the door lets him.
//!
//! Damage on the way ends the operation ([`crate::Damage::Record`]), at the latest at its deadline:
//! of a record whose length was altered the rest is awaited. A record is cut short, left out or
//! repeated by nobody without its being seen.
//!
//! Its costs are in `benches/RESULTS.md`: little where operations are small, and between two ranks
//! that share two cores several times as long where they are large, since every byte is enciphered
//! and deciphered (AES-256-GCM by `ring`).

mod conn;
mod fault;
mod stream;
mod verify;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, Error, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::Secret;

pub(crate) use conn::{
    Connection, Ended, ReadHalf, WriteHalf, accept, connect, is_record, peer_addr, split, try_say,
};
pub use fault::{TlsFault, TlsMistake, TlsPart};
pub(crate) use stream::Stream;

/// Names mean nothing, and are not sent; the libraries want one.
const NAME: &str = "muster";

/// The settings that keep strangers out of a job.
#[derive(Debug, Clone)]
pub struct Security {
    pub secret: Secret,
    /// All connections of the job are TLS, or none.
    pub tls: Option<Tls>,
}

impl From<Secret> for Security {
    fn from(secret: Secret) -> Security {
        Security { secret, tls: None }
    }
}

/// The files of a process, in PEM.
#[derive(Debug, Clone, Copy)]
pub struct Pem<'a> {
    /// Its own certificate, and those between it and the authority, in this order.
    pub certificate: &'a [u8],
    /// The private key of its own.
    pub key: &'a [u8],
    /// The certificates of which one must have signed everybody's.
    pub authority: &'a [u8],
}

/// The certificate of a process, and whose it takes.
#[derive(Clone)]
pub struct Tls {
    connector: TlsConnector,
    acceptor: TlsAcceptor,
    own: Own,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls(…)")
    }
}

/// A process's own certificate.
#[derive(Clone)]
struct Own {
    chain: Arc<[CertificateDer<'static>]>,
    /// Who listens, and who connects.
    taken_by: (Arc<dyn ClientCertVerifier>, Arc<dyn ServerCertVerifier>),
}

impl Tls {
    /// # Errors
    /// A text that is no PEM, or of another kind; a key that does not fit the certificate.
    pub fn new(pem: &Pem<'_>) -> Result<Tls, TlsMistake> {
        let provider = Arc::new(ring::default_provider());
        let chain = certificates(pem.certificate, TlsPart::Certificate)?;
        let key = PrivateKeyDer::from_pem_slice(pem.key)
            .map_err(|error| TlsMistake::pem(TlsPart::Key, &error))?;
        let roots = Arc::new(roots(pem.authority)?);
        let client =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
        let taken_by = client.build().map_err(|error| TlsMistake::Unusable {
            part: TlsPart::Authority,
            why: error.to_string(),
        })?;
        let key_fits = |error| TlsMistake::of_key(&error);
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13]);
        let server = server.map_err(key_fits)?.with_client_cert_verifier(Arc::clone(&taken_by));
        let mut server =
            server.with_single_cert(chain.clone(), key.clone_key()).map_err(key_fits)?;
        server.send_tls13_tickets = 0;
        let verifier = verify::OfAuthority::new(roots, provider.signature_verification_algorithms);
        let verifier = Arc::new(verifier);
        let client = client_config(provider, verifier.clone(), chain.clone(), key);
        let mut client = client.map_err(key_fits)?;
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        Ok(Tls {
            connector: TlsConnector::from(Arc::new(client)),
            acceptor: TlsAcceptor::from(Arc::new(server)),
            own: Own { chain: chain.into(), taken_by: (taken_by, verifier) },
        })
    }

    /// Whether the process's own certificate is one that the others take now, if their clocks are
    /// as this one's and their authority is the same.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), TlsMistake> {
        self.own.fault_at(UnixTime::now()).map_or(Ok(()), |fault| Err(TlsMistake::Own(fault)))
    }
}

impl Own {
    /// Why the certificate is not taken at that time.
    fn fault_at(&self, now: UnixTime) -> Option<TlsFault> {
        let (first, rest) = self.chain.split_first()?;
        let (listening, connecting) = &self.taken_by;
        let taken = listening.verify_client_cert(first, rest, now).map(drop);
        let taken = taken.and_then(|()| {
            let name = ServerName::try_from(NAME).map_err(|_| Error::UnsupportedNameType)?;
            connecting.verify_server_cert(first, rest, &name, &[], now).map(drop)
        });
        taken.err().map(|error| TlsFault::of_peer(&error))
    }

    /// From when until when the certificate is valid, in seconds since 1970.
    fn valid_s(&self) -> Option<(u64, u64)> {
        // Verifiers tell when they were asked too early or too late.
        const LAST_S: u64 = 253_402_300_799;
        let at = |s| self.fault_at(UnixTime::since_unix_epoch(Duration::from_secs(s)));
        match (at(0)?, at(LAST_S)?) {
            (TlsFault::NotYet { begins_s, .. }, TlsFault::Expired { ended_s, .. }) => {
                Some((begins_s, ended_s))
            }
            _ => None,
        }
    }
}

fn client_config(
    provider: Arc<CryptoProvider>,
    verifier: Arc<dyn ServerCertVerifier>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, Error> {
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(chain, key)
}

fn certificates(pem: &[u8], part: TlsPart) -> Result<Vec<CertificateDer<'static>>, TlsMistake> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|error| TlsMistake::pem(part, &error))?;
    if all.is_empty() {
        return Err(TlsMistake::Nothing { part });
    }
    Ok(all)
}

fn roots(pem: &[u8]) -> Result<RootCertStore, TlsMistake> {
    let part = TlsPart::Authority;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem, part)? {
        let added = roots.add(certificate);
        added.map_err(|error| TlsMistake::Unusable { part, why: error.to_string() })?;
    }
    Ok(roots)
}
