// Hands the visitor a file that the server made, without the server keeping one.
watch("value", () => {
  if (!props.value || !props.value.data) return;
  const link = document.createElement("a");
  link.href = props.value.data;
  link.download = props.value.name;
  document.body.append(link);
  link.click();
  link.remove();
  document.dispatchEvent(new CustomEvent("abm-saved"));
});
