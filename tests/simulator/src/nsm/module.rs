//! The state of one module, and what each request does to it. Time is an argument.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use attestation::measurement::{ZERO, extend};
use attestation::{Pcr, UnixMillis};
use aws_nitro_enclaves_nsm_api::api::{Digest, ErrorCode, Request, Response};
use ring::rand::{SecureRandom, SystemRandom};
use serde_bytes::ByteBuf;
use time::{Duration, OffsetDateTime};

use super::document::{self, Statement};
use crate::authority::{Authority, AuthorityError, Credentials, EnclaveName};

/// The registers that the hypervisor fills before the enclave starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registers {
    /// Image.
    pub pcr0: Pcr,
    /// Kernel and boot; here, the program.
    pub pcr1: Pcr,
    /// Application; here, the image's configuration.
    pub pcr2: Pcr,
    /// ARN of the parent's role, if it has one.
    pub role_arn: Option<String>,
}

/// Who the module speaks for.
#[derive(Clone, Debug)]
pub struct ModuleSettings {
    /// Of AWS, `us-east-1`.
    pub region: String,
    /// Of the parent, `i-<17 hex>`.
    pub instance_id: String,
    /// What was measured.
    pub registers: Registers,
    /// Debug mode: PCR0, PCR1 and PCR2 are zero; PCR3 and PCR4 keep their values, as on hardware.
    pub debug: bool,
}

/// A module for the life of one enclave. There is no reset.
pub struct Module {
    authority: Arc<Authority>,
    name: EnclaveName,
    credentials: Credentials,
    values: [Pcr; PCR_COUNT],
    locked: [bool; PCR_COUNT],
}

impl Module {
    /// A module at the start of its enclave: PCR0 to PCR15 filled and locked, the rest zero and open.
    pub fn new(authority: Arc<Authority>, settings: &ModuleSettings, now: UnixMillis) -> Result<Self, ModuleError> {
        let ModuleSettings { region, instance_id, registers, debug } = settings;
        let mut life = [0; 8];
        SystemRandom::new().fill(&mut life).map_err(|_| ModuleError::Entropy)?;
        let module_id = format!("{instance_id}-enc{}", hex::encode(life));
        let name = EnclaveName { region: region.clone(), instance_id: instance_id.clone(), module_id };
        let credentials = authority.issue(&name, to_time(now)?)?;
        let Registers { pcr0, pcr1, pcr2, role_arn } = registers;
        let image = if *debug { [ZERO; 3] } else { [*pcr0, *pcr1, *pcr2] };
        // PCR3 and PCR4 are not hashed first: SHA384(48 zero bytes || text).
        let pcr3 = role_arn.as_ref().map_or(ZERO, |arn| extend(&ZERO, arn.as_bytes()));
        let pcr4 = extend(&ZERO, instance_id.as_bytes());
        let mut values = [ZERO; PCR_COUNT];
        for (register, value) in values.iter_mut().zip(image.into_iter().chain([pcr3, pcr4])) {
            *register = value;
        }
        let mut locked = [false; PCR_COUNT];
        locked.iter_mut().take(LOCKED_AT_BOOT).for_each(|lock| *lock = true);
        Ok(Self { authority, name, credentials, values, locked })
    }

    /// The name that documents carry.
    #[must_use]
    pub fn module_id(&self) -> &str {
        &self.name.module_id
    }

    /// Answers one request at a moment.
    pub fn handle(&mut self, request: Request, now: UnixMillis) -> Response {
        self.answer(request, now).unwrap_or_else(Response::Error)
    }

    fn answer(&mut self, request: Request, now: UnixMillis) -> Result<Response, ErrorCode> {
        match request {
            Request::DescribePCR { index } => {
                let (value, locked) = self.register(index)?;
                Ok(Response::DescribePCR { lock: *locked, data: value.to_vec() })
            }
            Request::ExtendPCR { index, data } => {
                let (value, locked) = self.register(index)?;
                if *locked {
                    return Err(ErrorCode::ReadOnlyIndex);
                }
                *value = extend(value, &data);
                Ok(Response::ExtendPCR { data: value.to_vec() })
            }
            Request::LockPCR { index } => {
                let (_, locked) = self.register(index)?;
                if *locked {
                    return Err(ErrorCode::ReadOnlyIndex);
                }
                *locked = true;
                Ok(Response::LockPCR)
            }
            // Registers 0 to range - 1; that some are locked already is no error.
            Request::LockPCRs { range } => {
                let range = usize::from(range);
                let locks = self.locked.get_mut(..range).ok_or(ErrorCode::InvalidIndex)?;
                locks.iter_mut().for_each(|lock| *lock = true);
                Ok(Response::LockPCRs)
            }
            Request::DescribeNSM => Ok(self.describe()),
            Request::Attestation { user_data, nonce, public_key } => self.attest(user_data, nonce, public_key, now),
            Request::GetRandom => {
                let mut random = vec![0; RANDOM_BYTES];
                SystemRandom::new().fill(&mut random).map_err(|_| ErrorCode::InternalError)?;
                Ok(Response::GetRandom { random })
            }
            _ => Err(ErrorCode::InvalidOperation),
        }
    }

    fn register(&mut self, index: u16) -> Result<(&mut Pcr, &mut bool), ErrorCode> {
        let index = usize::from(index);
        self.values.get_mut(index).zip(self.locked.get_mut(index)).ok_or(ErrorCode::InvalidIndex)
    }

    fn describe(&self) -> Response {
        let locked_pcrs: BTreeSet<u16> =
            (0..).zip(self.locked).filter(|(_, locked)| *locked).map(|(index, _)| index).collect();
        Response::DescribeNSM {
            version_major: 1,
            version_minor: 0,
            version_patch: 0,
            module_id: self.name.module_id.clone(),
            max_pcrs: MAX_PCRS,
            locked_pcrs,
            digest: Digest::SHA384,
        }
    }

    fn attest(
        &mut self,
        user_data: Option<ByteBuf>,
        nonce: Option<ByteBuf>,
        public_key: Option<ByteBuf>,
        now: UnixMillis,
    ) -> Result<Response, ErrorCode> {
        let is_too_long = |field: &Option<ByteBuf>| field.as_ref().is_some_and(|bytes| bytes.len() > MAX_OPTIONAL);
        if [&user_data, &nonce, &public_key].into_iter().any(is_too_long) {
            return Err(ErrorCode::InputTooLarge);
        }
        self.renew(now).map_err(|_| ErrorCode::InternalError)?;
        // "all locked PCRs": an open one is not listed.
        let registers = (0..).zip(self.values).zip(self.locked);
        let pcrs = registers.filter(|(_, locked)| *locked).map(|(register, _)| register).collect();
        let statement = Statement {
            module_id: &self.name.module_id,
            timestamp: now,
            pcrs,
            public_key: public_key.as_deref().map(Vec::as_slice),
            user_data: user_data.as_deref().map(Vec::as_slice),
            nonce: nonce.as_deref().map(Vec::as_slice),
        };
        let document = document::sign(&statement, &self.credentials).map_err(|_| ErrorCode::InternalError)?;
        Ok(Response::Attestation { document })
    }

    /// The hardware issues a new leaf 15 minutes before the old one ends.
    fn renew(&mut self, now: UnixMillis) -> Result<(), ModuleError> {
        let now = to_time(now)?;
        if now + RENEW_BEFORE >= self.credentials.not_after {
            self.credentials = self.authority.issue(&self.name, now)?;
        }
        Ok(())
    }
}

fn to_time(at: UnixMillis) -> Result<OffsetDateTime, ModuleError> {
    let seconds = i64::try_from(at.seconds()).map_err(|_| ModuleError::Time)?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| ModuleError::Time)
}

impl fmt::Debug for Module {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Module").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why there is no module, or no document.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModuleError {
    /// The certificates could not be made.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A document could not be written.
    #[error("a document could not be written")]
    Encoding,
    /// No entropy.
    #[error("no entropy")]
    Entropy,
    /// A time that certificates cannot have.
    #[error("the time is out of the range of certificates")]
    Time,
}

const PCR_COUNT: usize = 32;
const MAX_PCRS: u16 = 32;
/// PCR0 to PCR15 are the hypervisor's.
const LOCKED_AT_BOOT: usize = 16;
/// `NSM_RANDOM_REQ_SIZE` of the C SDK: what the hardware gives at most in one call.
const RANDOM_BYTES: usize = 256;
/// nsm-check asks for so much in each field, and gets it.
const MAX_OPTIONAL: usize = 1024;
const RENEW_BEFORE: Duration = Duration::minutes(15);
