//! Certificates for tests.

use comm::tls::{Pem, Tls};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};

/// Signs certificates.
pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A process's certificate and key, in PEM.
pub struct Made {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate that is valid from one year to another.
    pub fn sign(&self, from_year: i32, to_year: i32) -> Made {
        self.sign_for((from_year, to_year), &[])
    }

    /// One for these uses, or for any.
    pub fn sign_for(
        &self,
        (from_year, to_year): (i32, i32),
        uses: &[ExtendedKeyUsagePurpose],
    ) -> Made {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.extended_key_usages = uses.to_vec();
        params.not_before = date_time_ymd(from_year, 1, 1);
        params.not_after = date_time_ymd(to_year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Made { certificate, key: key.serialize_pem() }
    }

    /// The TLS of a process that shows this and takes who is of this authority.
    pub fn tls(&self, made: &Made) -> Tls {
        let (certificate, key) = (made.certificate.as_bytes(), made.key.as_bytes());
        Tls::new(&Pem { certificate, key, authority: self.pem.as_bytes() }).unwrap()
    }

    /// Of a process like any other.
    pub fn of_anyone(&self) -> Tls {
        self.tls(&self.sign(2000, 4000))
    }
}
