//! Whether a server is the one that its certificate names, and why not, in words.
//!
//! As in client-go, a certificate that is itself one of the trusted ones is good, also where it is marked as
//! an authority: `openssl req -x509` marks so. webpki refuses such, as browsers do. Nothing is given away: the holder
//! of an authority's key can sign any certificate with it. Name, time and key are checked all the same.

use anyhow::{Context, bail};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tower::BoxError;

/// Checks the certificates of servers.
#[derive(Debug)]
pub(super) struct Verifier {
    authorities: Vec<CertificateDer<'static>>,
    webpki: Arc<WebPkiServerVerifier>,
}

impl Verifier {
    /// Trusts these authorities, or the system's if there are none.
    pub(super) fn new(authorities: Option<Vec<CertificateDer<'static>>>) -> anyhow::Result<Self> {
        let whose = if authorities.is_some() { "certificate-authority" } else { "the system's store" };
        let authorities = authorities.unwrap_or_else(|| rustls_native_certs::load_native_certs().certs);
        let mut roots = RootCertStore::empty();
        if roots.add_parsable_certificates(authorities.iter().cloned()).0 == 0 {
            bail!("there is no usable certificate in {whose}");
        }
        let webpki = WebPkiServerVerifier::builder(Arc::new(roots)).build().context(whose)?;
        Ok(Verifier { authorities, webpki })
    }

    /// What webpki says of a certificate that is itself trusted and marked as an authority. It looks at the time
    /// before it looks at the mark, and at the name last.
    fn trust(
        &self,
        certificate: &CertificateDer<'_>,
        name: &ServerName<'_>,
        refused: rustls::Error,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if !is_marked_as_authority(&refused) || !self.authorities.iter().any(|own| own == certificate) {
            return Err(refused);
        }
        verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        Ok(ServerCertVerified::assertion())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verdict = self.webpki.verify_server_cert(certificate, intermediates, name, ocsp, now);
        let verdict = verdict.or_else(|refused| self.trust(certificate, name, refused));
        verdict.map_err(|error| Refusal(words(&error)).into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let verdict = self.webpki.verify_tls12_signature(message, certificate, signature);
        verdict.map_err(|_| Refusal::without_key().into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let verdict = self.webpki.verify_tls13_signature(message, certificate, signature);
        verdict.map_err(|_| Refusal::without_key().into())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// Why a certificate was refused.
#[derive(Clone, Debug)]
struct Refusal(String);

impl Refusal {
    fn without_key() -> Self {
        Refusal("the server does not have the key of it".to_owned())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server's certificate is refused: {}", self.0)
    }
}

impl Error for Refusal {}

impl From<Refusal> for rustls::Error {
    fn from(refusal: Refusal) -> Self {
        CertificateError::Other(OtherError(Arc::new(refusal))).into()
    }
}

fn is_marked_as_authority(error: &rustls::Error) -> bool {
    let rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(error))) = error else {
        return false;
    };
    matches!(error.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}

/// What is wrong with a certificate, and what helps.
fn words(error: &rustls::Error) -> String {
    let rustls::Error::InvalidCertificate(wrong) = error else { return error.to_string() };
    match wrong {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "no authority that we trust has signed it; certificate-authority has to name the one that has".to_owned()
        }
        CertificateError::ExpiredContext { time, not_after } => {
            format!("it expired {} ago; renew it, or set the node's clock", between(*not_after, *time))
        }
        CertificateError::NotValidYetContext { time, not_before } => {
            format!("it is not valid yet, but in {}; is the node's clock right?", between(*time, *not_before))
        }
        CertificateError::NotValidForNameContext { expected, presented } => format!(
            "it is not for {}, but for {}; tls-server-name may name what it is for",
            expected.to_str(),
            presented.iter().map(|name| bare(name)).collect::<Vec<_>>().join(", "),
        ),
        _ if is_marked_as_authority(error) => {
            "it is that of an authority (CA:TRUE) which certificate-authority does not name; a server needs one with \
             CA:FALSE"
                .to_owned()
        }
        _ => wrong.to_string(),
    }
}

/// The name in `DnsName("api.example")` and `IpAddress(192.0.2.1)`.
fn bare(name: &str) -> &str {
    name.split_once('(').map_or(name, |(_, name)| name.trim_matches([')', '"']))
}

/// A time in whole days, or less.
fn between(from: UnixTime, to: UnixTime) -> String {
    const DAY: u64 = 86_400;
    match to.as_secs().saturating_sub(from.as_secs()) {
        seconds @ ..DAY => format!("{:?}", Duration::from_secs(seconds)),
        seconds => format!("{} days", seconds / DAY),
    }
}

/// The refusal inside of an error, or else the error: what is around it says nothing.
pub(super) fn explain(error: BoxError) -> BoxError {
    let mut next: Option<&(dyn Error + 'static)> = Some(&*error);
    while let Some(error) = next {
        if let Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner)))) =
            error.downcast_ref()
            && let Some(refusal) = inner.downcast_ref::<Refusal>()
        {
            return Box::new(refusal.clone());
        }
        // An I/O error hides what it was made of from those who ask for its source.
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = inner.map_or_else(|| error.source(), |inner| Some(inner));
    }
    error
}
