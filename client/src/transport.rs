//! One request with its attempts.

use crate::{Error, Token, config::ClientConfig, tls};
use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, DATE, RETRY_AFTER},
};
use protocol::{Problem, problem::PROBLEM_JSON};
use reqwest::Url;
use serde::{Serialize, de::DeserializeOwned};
use session::retry::{Decision, Outcome, Policy, Retry};
use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

/// Most bytes of an answer that is read whole.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// Most bytes of a foreign answer that are shown in an error.
const MAX_EXCERPT_CHARS: usize = 200;
/// How long an idle connection is kept for the next request. Below the 10 s that the master keeps one, so
/// that none is closed under a request.
pub const POOL_IDLE: Duration = Duration::from_secs(8);
const JSON: &str = "application/json";

/// One request to make.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    /// Parts of the path, percent-encoded by the transport.
    pub(crate) path: Vec<Cow<'a, str>>,
    pub(crate) query: Vec<(&'static str, String)>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Option<Bytes>,
    /// Instead of the configured token.
    pub(crate) token: Option<&'a Token>,
    /// Whether doing it twice is the same as doing it once.
    pub(crate) repeatable: bool,
    /// Instead of the configured bounds.
    pub(crate) retry: Option<Policy>,
    /// How long the server was asked to wait before it answers.
    pub(crate) wait: Duration,
}

impl<'a> Call<'a> {
    pub(crate) fn new(method: Method, path: impl IntoIterator<Item = impl Into<Cow<'a, str>>>) -> Self {
        let repeatable = method.is_idempotent();
        Self {
            method,
            path: path.into_iter().map(Into::into).collect(),
            query: Vec::new(),
            headers: HeaderMap::new(),
            body: None,
            token: None,
            repeatable,
            retry: None,
            wait: Duration::ZERO,
        }
    }

    pub(crate) fn json(mut self, body: &impl Serialize) -> Result<Self, Error> {
        let body = serde_json::to_vec(body)
            .map_err(|error| Error::Config(format!("the request cannot be written as JSON: {error}")))?;
        self.body = Some(body.into());
        self.headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        Ok(self)
    }

    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Result<Self, Error> {
        let value = HeaderValue::from_str(value)
            .map_err(|_| Error::Config(format!("{value:?} cannot be sent in the header {name}")))?;
        self.headers.insert(name, value);
        Ok(self)
    }

    pub(crate) fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    /// Asks the server to wait so long before it answers with what is not finished.
    pub(crate) fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self.query("wait", format!("{}ms", wait.as_millis()))
    }

    pub(crate) const fn repeatable(mut self) -> Self {
        self.repeatable = true;
        self
    }

    pub(crate) const fn retry(mut self, policy: Policy) -> Self {
        self.retry = Some(policy);
        self
    }

    pub(crate) const fn token(mut self, token: &'a Token) -> Self {
        self.token = Some(token);
        self
    }
}

/// A whole answer with a status of success.
#[derive(Debug)]
pub(crate) struct Answer {
    url: String,
    status: u16,
    date: Option<SystemTime>,
    body: Bytes,
}

impl Answer {
    /// The server's wall clock, in whole seconds; `None` if it does not say.
    pub(crate) const fn date(&self) -> Option<SystemTime> {
        self.date
    }

    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|error| Error::Answer {
            url: self.url.clone(),
            status: self.status,
            why: error.to_string(),
        })
    }
}

/// The attempts of one call.
#[derive(Debug)]
struct Tries {
    began: Instant,
    retry: Retry,
}

/// Connections to the masters of one cluster.
#[derive(Debug)]
pub(crate) struct Transport {
    http: reqwest::Client,
    urls: Vec<Url>,
    current: AtomicUsize,
    config: ClientConfig,
    tls: Arc<rustls::ClientConfig>,
}

impl Transport {
    pub(crate) fn new(config: ClientConfig) -> Result<Self, Error> {
        let urls = config.urls.iter().map(|url| parse_url(url)).collect::<Result<Vec<_>, _>>()?;
        if urls.is_empty() {
            return Err(Error::Config(
                "no master is named; pass --master URL or run `evenkeel up`".to_owned(),
            ));
        }
        let secure = urls.iter().filter(|url| url.scheme() == "https").count();
        if secure > 0 && secure < urls.len() {
            return Err(Error::Config(
                "some masters are named by https:// and some by http://; tokens would travel in clear text to those by http://, so name all by https://"
                    .to_owned(),
            ));
        }
        if config.trust.is_none() && secure > 0 {
            return Err(Error::Config(
                "an https master needs its CA certificate; pass the file, or its fingerprint sha256:…, with --ca"
                    .to_owned(),
            ));
        }
        if let Some(token) = &config.token {
            bearer(token)?;
        }
        let tls = tls::config(config.trust.as_ref())?;
        let http = reqwest::Client::builder()
            .user_agent(concat!("evenkeel/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            // The retries of `session::retry` are the only ones.
            .retry(reqwest::retry::never())
            .connect_timeout(config.timeouts.connect)
            .tcp_keepalive(Duration::from_secs(15))
            .pool_idle_timeout(POOL_IDLE)
            .tls_backend_preconfigured(tls.clone())
            .build()
            .map_err(|error| Error::Config(format!("the HTTP client cannot be made: {error}")))?;
        Ok(Self { http, urls, current: AtomicUsize::new(0), config, tls: Arc::new(tls) })
    }

    pub(crate) fn tls(&self) -> Arc<rustls::ClientConfig> {
        Arc::clone(&self.tls)
    }

    pub(crate) fn url(&self) -> &Url {
        &self.urls[self.index()]
    }

    /// Which master is asked now.
    fn index(&self) -> usize {
        self.current.load(Ordering::Relaxed) % self.urls.len()
    }

    /// Takes the next master, unless the one of this URL is not asked any more.
    pub(crate) fn leave(&self, url: &str) {
        let index = self.index();
        if self.urls[index].as_str() == url {
            self.leave_url(index);
        }
    }

    /// Takes the next master, unless another caller has done so already.
    fn leave_url(&self, index: usize) {
        let next = (index + 1) % self.urls.len();
        let _ = self.current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Makes the request, with retries as `session::retry` decides, and reads the whole answer.
    pub(crate) async fn call(&self, call: Call<'_>) -> Result<Answer, Error> {
        self.attempts(&call).await
    }

    /// One attempt at one master.
    async fn attempt(&self, url: &Url, call: &Call<'_>) -> Result<Answer, Error> {
        let timeout = self.config.timeouts.request + call.wait;
        let after_ms = millis(timeout);
        let request = self.request(url, call)?.timeout(timeout);
        let response = request.send().await.map_err(|error| Error::of_reqwest(url, &error, after_ms))?;
        self.read(url, response, after_ms).await
    }

    /// Makes a request whose body and answer are streams; returns once the head of the answer is there.
    /// `body` makes a new body for each attempt; there is another only while nothing of it was used.
    pub(crate) async fn stream<S>(
        &self,
        call: Call<'_>,
        body: impl Fn() -> (S, reqwest::Body),
    ) -> Result<(S, reqwest::Response), Error> {
        let mut tries = self.tries(&call);
        loop {
            let index = self.index();
            let (sender, body) = body();
            match self.open_stream(&self.urls[index], &call, Some(body)).await {
                Ok(response) => return Ok((sender, response)),
                Err(error) => self.pause(&mut tries, index, &call, error).await?,
            }
        }
    }

    /// Makes a request without a body, with retries, and returns once the head of the answer is there.
    pub(crate) async fn open(&self, call: &Call<'_>) -> Result<reqwest::Response, Error> {
        let mut tries = self.tries(call);
        loop {
            let index = self.index();
            match self.open_stream(&self.urls[index], call, None).await {
                Ok(response) => return Ok(response),
                Err(error) => self.pause(&mut tries, index, call, error).await?,
            }
        }
    }

    async fn open_stream(
        &self,
        url: &Url,
        call: &Call<'_>,
        body: Option<reqwest::Body>,
    ) -> Result<reqwest::Response, Error> {
        let timeout = self.config.timeouts.connect + self.config.timeouts.request;
        let after_ms = millis(timeout);
        let late = || Error::Timeout { url: url.origin().ascii_serialization(), after_ms };
        let mut request = self.request(url, call)?;
        if let Some(body) = body {
            request = request.body(body);
        }
        let response = tokio::time::timeout(timeout, request.send())
            .await
            .map_err(|_| late())?
            .map_err(|error| Error::of_reqwest(url, &error, after_ms))?;
        if response.status().is_success() {
            return Ok(response);
        }
        match tokio::time::timeout(timeout, self.read(url, response, after_ms)).await {
            Ok(Err(error)) => Err(error),
            Ok(Ok(_)) | Err(_) => Err(late()),
        }
    }

    async fn attempts(&self, call: &Call<'_>) -> Result<Answer, Error> {
        let mut tries = self.tries(call);
        loop {
            let index = self.index();
            match self.attempt(&self.urls[index], call).await {
                Ok(answer) => return Ok(answer),
                Err(error) => self.pause(&mut tries, index, call, error).await?,
            }
        }
    }

    fn tries(&self, call: &Call<'_>) -> Tries {
        let policy = call.retry.unwrap_or(self.config.retry);
        let urls = u32::try_from(self.urls.len()).unwrap_or(u32::MAX);
        Tries { began: Instant::now(), retry: Retry::new(policy, call.repeatable, urls) }
    }

    /// After an attempt that went wrong at this master: waits until the next one, or gives the error back.
    async fn pause(
        &self,
        tries: &mut Tries,
        index: usize,
        call: &Call<'_>,
        error: Error,
    ) -> Result<(), Error> {
        let outcome = error.outcome();
        if outcome != Outcome::Final {
            self.leave_url(index);
        }
        match tries.retry.decide(millis(tries.began.elapsed()), outcome, random_fraction()) {
            Decision::GiveUp => Err(error),
            Decision::Again { after_ms, .. } => {
                tracing::debug!(method = %call.method, path = ?call.path, after_ms, %error, "trying again");
                tokio::time::sleep(Duration::from_millis(after_ms)).await;
                Ok(())
            }
        }
    }

    fn request(&self, base: &Url, call: &Call<'_>) -> Result<reqwest::RequestBuilder, Error> {
        let mut url = base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(call.path.iter());
        }
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&call.query);
        }
        let mut headers = call.headers.clone();
        if !headers.contains_key(ACCEPT) {
            headers.insert(ACCEPT, HeaderValue::from_static("application/json, application/problem+json"));
        }
        let token = call.token.or(self.config.token.as_ref());
        // An empty one is that of a master without tokens; `Bearer` alone would be refused.
        if let Some(token) = token.filter(|token| !token.expose().is_empty()) {
            headers.insert(AUTHORIZATION, bearer(token)?);
        }
        let request = self.http.request(call.method.clone(), url).headers(headers);
        Ok(match &call.body {
            Some(body) => request.body(body.clone()),
            None => request,
        })
    }

    /// Reads an answer whole; one without a status of success becomes an error.
    async fn read(&self, url: &Url, mut response: reqwest::Response, after_ms: u64) -> Result<Answer, Error> {
        let status = response.status();
        let url_text = url.origin().ascii_serialization();
        let retry_after_s = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.trim().parse::<u32>().ok());
        let date = response.headers().get(DATE).and_then(|value| value.to_str().ok());
        let date = date.and_then(|text| httpdate::parse_http_date(text).ok());
        let is_problem = response
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(PROBLEM_JSON.as_bytes()));
        let mut body = BytesMut::new();
        while let Some(part) =
            response.chunk().await.map_err(|error| Error::of_reqwest(url, &error, after_ms))?
        {
            if body.len() + part.len() > MAX_ANSWER_BYTES {
                let why = format!("it is longer than {MAX_ANSWER_BYTES} bytes; ask for less with `limit`");
                return Err(Error::Answer { url: url_text, status: status.as_u16(), why });
            }
            body.extend_from_slice(&part);
        }
        if status.is_success() {
            return Ok(Answer { url: url_text, status: status.as_u16(), date, body: body.freeze() });
        }
        if is_problem && let Ok(mut problem) = serde_json::from_slice::<Problem>(&body) {
            problem.status = status.as_u16();
            problem.retry_after_s = retry_after_s;
            return Err(Error::Problem(Box::new(problem)));
        }
        let why = excerpt(&body);
        Err(Error::Answer { url: url_text, status: status.as_u16(), why })
    }
}

fn parse_url(text: &str) -> Result<Url, Error> {
    let wrong = |why: &str| {
        Error::Config(format!("{text:?} is not the URL of a master: {why}; one is http://127.0.0.1:7400"))
    };
    let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(wrong("it must begin with http:// or https:// and name a host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Error::Config(
            "the URL of a master holds a user or password; tokens are given by file or environment"
                .to_owned(),
        ));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("it must have no query and no fragment"));
    }
    Ok(url)
}

fn bearer(token: &Token) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose()))
        .map_err(|_| Error::Config("the token holds characters that no token has".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn excerpt(body: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(body)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_EXCERPT_CHARS)
        .collect();
    if text.trim().is_empty() { "no body".to_owned() } else { text.trim().to_owned() }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Uniform in 0 ≤ f < 1; one half if the system has no randomness now, which only costs the spread.
fn random_fraction() -> f64 {
    getrandom::u32().map_or(0.5, |bits| f64::from(bits) / 4_294_967_296.0)
}
